// What the programs for JavaScript share: a picture, its size. Needs nothing but Node.js.
import assert from "node:assert/strict";
import zlib from "node:zlib";

export const model = "aquatint-demo";
export const wrongKey = "sk-wrong-0123456789abcdef";

const magic = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

export function png(width = 32, height = 32) {
  const chunk = (kind, content) => {
    const body = Buffer.concat([Buffer.from(kind), content]);
    const out = Buffer.alloc(8 + body.length);
    out.writeUInt32BE(content.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(zlib.crc32(body), 4 + body.length);
    return out;
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const pixels = zlib.deflateSync(Buffer.alloc((3 * width + 1) * height));
  return Buffer.concat([magic, chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))]);
}

// content: bytes of a PNG, or base64 of them.
export function sizeOf(content) {
  const bytes = typeof content === "string" ? Buffer.from(content, "base64") : Buffer.from(content);
  assert.deepEqual(bytes.subarray(0, 8), magic);
  return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
}
