// What LangChain for JavaScript makes of the server. `node langchain.mjs URL KEY`; needs @langchain/openai.
import assert from "node:assert/strict";
import { DallEAPIWrapper } from "@langchain/openai";
import { sizeOf, wrongKey } from "./checking.mjs";

const [url, key] = process.argv.slice(2);
const at = { baseUrl: url, apiKey: key };

// It always says which answer it wants, with quality and style; it is a tool, so agents call `invoke`.
const link = await new DallEAPIWrapper(at).invoke("a red circle");
assert.deepEqual(sizeOf(await (await fetch(link)).arrayBuffer()), [1024, 1024]);
const bytes = await new DallEAPIWrapper({ ...at, model: "aquatint-demo", size: "256x256", dallEResponseFormat: "b64_json" }).invoke("x");
assert.deepEqual(sizeOf(bytes), [256, 256]);

// Several pictures are as many requests at once.
const several = await new DallEAPIWrapper({ ...at, n: 3, quality: "hd", user: "me" }).invoke("x");
assert.equal(several.filter((item) => item.type === "image_url" && item.image_url.startsWith(url)).length, 3);

await assert.rejects(
  new DallEAPIWrapper({ ...at, size: "huge" }).invoke("x"),
  (error) => error.status === 400 && error.param === "size" && error.code === "invalid_value" && error.message.includes("Invalid size 'huge'"),
);
await assert.rejects(new DallEAPIWrapper({ ...at, apiKey: wrongKey }).invoke("x"), (error) => error.status === 401 && error.code === "invalid_api_key");
console.log("@langchain/openai: all as it expects");
