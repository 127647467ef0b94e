// What the Vercel AI SDK makes of the server, by both of its providers. `node ai_sdk.mjs URL KEY`; needs ai, @ai-sdk/openai
// and @ai-sdk/openai-compatible.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";
import { model, png, sizeOf, wrongKey } from "./checking.mjs";

const [url, key] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: url, apiKey: key });
const compatible = createOpenAICompatible({ name: "aquatint", baseURL: url, apiKey: key });
const sizes = ({ images }) => images.map((image) => sizeOf(image.uint8Array));

// generations: with a model it knows by name (no response_format), one it does not, and one whose answers are urls
const known = await generateImage({ model: openai.image("gpt-image-1"), prompt: "x", n: 2, size: "256x256", providerOptions: { openai: { quality: "low" } } });
assert.deepEqual(sizes(known), [[256, 256], [256, 256]]);
assert.ok(known.usage.totalTokens > 0);
assert.equal(known.image.mediaType, "image/png");
assert.deepEqual(sizes(await generateImage({ model: openai.image(model), prompt: "x", size: "256x128" })), [[256, 128]]);
const seeded = { model: compatible.imageModel(model), prompt: "x", size: "128x128", providerOptions: { aquatint: { seed: 7, negative_prompt: "fog" } } };
const [once, again] = [await generateImage(seeded), await generateImage(seeded)];
assert.deepEqual(sizes(once), [[128, 128]]);
assert.equal(once.image.base64, again.image.base64);
assert.deepEqual(sizes(await generateImage({ model: compatible.imageModel("dall-e-3"), prompt: "x", size: "256x256" })), [[256, 256]]);

// edits: one image, several, a mask
for (const each of [openai.image("gpt-image-1"), openai.image("gpt-image-1.5"), compatible.imageModel(model)]) {
  for (const images of [[png()], [png(), png(48, 48)]]) {
    const edited = await generateImage({ model: each, prompt: { text: "x", images, mask: png() }, size: "256x256" });
    assert.deepEqual(sizes(edited), [[256, 256]]);
  }
}

// errors: the message of the envelope, never just the reason phrase, and no second try
for (const each of [openai.image(model), compatible.imageModel(model)]) {
  await assert.rejects(
    generateImage({ model: each, prompt: "" }),
    (error) =>
      APICallError.isInstance(error) &&
      error.statusCode === 400 &&
      !error.isRetryable &&
      error.message.startsWith("Invalid 'prompt': empty string.") &&
      error.data.error.param === "prompt" &&
      error.data.error.code === "empty_string",
  );
}
await assert.rejects(
  generateImage({ model: openai.image("gpt-image-1"), prompt: { text: "x", images: [Buffer.from("%PDF-1.7")] } }),
  (error) => APICallError.isInstance(error) && error.message.includes("unsupported mimetype ('application/pdf')"),
);
const stranger = createOpenAI({ baseURL: url, apiKey: wrongKey });
await assert.rejects(
  generateImage({ model: stranger.image(model), prompt: "x" }),
  (error) => APICallError.isInstance(error) && error.statusCode === 401 && error.message.startsWith("Incorrect API key provided"),
);
console.log("ai with @ai-sdk/openai and @ai-sdk/openai-compatible: all as they expect");
