// What the openai package for JavaScript makes of the server. `node node_sdk.mjs URL KEY`; needs nothing but the package.
import assert from "node:assert/strict";
import OpenAI, { AuthenticationError, BadRequestError, NotFoundError, toFile } from "openai";
import { model, png, sizeOf, wrongKey } from "./checking.mjs";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: key });

// generations
const made = await client.images.generate({ model, prompt: "猫", n: 2, size: "256x128", seed: 41 });
assert.deepEqual(made.data.map((item) => sizeOf(item.b64_json)), [[256, 128], [256, 128]]);
assert.deepEqual(made.data.map((item) => item.seed), [41, 42]);
const linked = await client.images.generate({ model: "dall-e-3", prompt: "x", style: "vivid", quality: "hd" });
const fetched = await fetch(linked.data[0].url);
assert.equal(fetched.headers.get("content-type"), "image/png");
const { response } = await client.images.generate({ model, prompt: "x" }).withResponse();
assert.match(response.headers.get("x-run-id"), /^run_/);

// edits and variations: the SDK streams its form without a length
const image = await toFile(png(), "a.png", { type: "image/png" });
for (const images of [image, [image], await toFile(png())]) {
  const edited = await client.images.edit({ model, image: images, mask: await toFile(png(), "m.png"), prompt: "x", strength: 0.5 });
  assert.ok(edited.data[0].b64_json);
}
assert.equal((await client.images.createVariation({ image, n: 2 })).data.length, 2);

// models
const ids = [];
for await (const each of client.models.list()) ids.push(each.id);
assert.ok(ids.includes(model) && ids.includes("org/other:1"));
assert.equal((await client.models.retrieve("org/other:1")).id, "org/other:1");
await assert.rejects(client.models.retrieve("no/one"), (error) => error instanceof NotFoundError && error.code === "model_not_found");

// errors
await assert.rejects(
  client.images.generate({ model, prompt: "x", n: 11 }),
  (error) => error instanceof BadRequestError && error.param === "n" && error.code === "integer_above_max_value",
);
await assert.rejects(
  new OpenAI({ baseURL: url, apiKey: wrongKey }).images.generate({ model, prompt: "x" }),
  (error) => error instanceof AuthenticationError && error.code === "invalid_api_key" && Boolean(error.requestID),
);
console.log("openai for JavaScript: all as it expects");
