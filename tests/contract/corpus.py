"""Bodies that no client of good will sends: broken, huge, deep, deceitful. Each with the status it must be answered."""

import base64
import io
import struct
import time
import zlib
from dataclasses import dataclass, field

import httpx
import orjson
from PIL import Image

GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
WITHIN_S = 2.0
"""Longest that a refusal may take."""
MAX_BYTES = 4 * 1024 * 1024
BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Hostile:
    """One request. status: what it must be answered; 200 where what looks odd is right."""

    name: str
    path: str
    body: bytes = field(repr=False)
    content_type: str = "application/json"
    status: int = 400

    def __str__(self) -> str:
        return f"{self.path.rpartition('/')[2]}: {self.name}"


def picture(file_format: str = "PNG", size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """A good one."""
    out = io.BytesIO()
    Image.new(mode, size).save(out, file_format)
    return out.getvalue()


def noise(file_format: str) -> bytes:
    """A good one that does not shrink to nothing."""
    out = io.BytesIO()
    Image.effect_noise((32, 32), 80).convert("RGB").save(out, file_format)
    return out.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises this many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, content, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def part(name: str, content: bytes, *, file: bool = False) -> bytes:
    """One part of a form."""
    named = f'name="{name}"; filename="a.png"' if file else f'name="{name}"'
    return f"--{BOUNDARY}\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Parts, ended as a form ends."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


PROMPT = part("prompt", b"a cat")
GOOD = part("image", picture(), file=True)

JSON_BODIES = {
    "nothing": b"",
    "half an object": b'{"prompt": "x"',
    "deep arrays": b"[" * 500_000,
    "deep objects": b'{"a":' * 150_000 + b"1" + b"}" * 150_000,
    "deep extra_params": b'{"prompt":"x","extra_params":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001,
    "NaN": b'{"prompt": "x", "guidance_scale": NaN}',
    "Infinity": b'{"prompt": "x", "guidance_scale": -Infinity}',
    "an endless number": b'{"prompt": "x", "seed": ' + b"9" * 500_000 + b"}",
    "a number beyond floats": b'{"prompt": "x", "guidance_scale": 1e400}',
    "a number beyond 64 bits": b'{"prompt": "x", "seed": 18446744073709551616}',
    "an exponent": b'{"prompt": "x", "n": 1e0}',
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a broken pair": b'{"prompt": "\\udc00\\ud800"}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf" + b'{"prompt": "x"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a NUL": b'{"prompt": "a\\u0000b"}',
    "a form": form(PROMPT, GOOD),
    "compressed": zlib.compress(b'{"prompt": "x"}'),
}
GENERATION = [Hostile(name, GENERATIONS, body) for name, body in JSON_BODIES.items()] + [
    Hostile("a key twice", GENERATIONS, b'{"prompt": 5, "prompt": "x"}', status=200),
    Hostile(
        "a thousand keys", GENERATIONS, orjson.dumps({"prompt": "x"} | {f"k{i}\r\nx: y": i for i in range(100)}), status=200
    ),
    Hostile("no type", GENERATIONS, b'{"prompt": "x"}', content_type="", status=200),
    Hostile("called text", GENERATIONS, b'{"prompt": "x"}', content_type="text/plain;charset=utf-16", status=200),
    Hostile("called a form", GENERATIONS, b'{"prompt": 5}', content_type=FORM),
    Hostile("a megabyte too many", GENERATIONS, b'{"prompt": "' + b"x" * 2_000_000 + b'"}', status=413),
]

PICTURES = {
    "an empty file": b"",
    "text": b"a cat",
    "a PDF": b"%PDF-1.7\n",
    "an SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a GIF": picture("GIF", mode="P"),
    "a TIFF": picture("TIFF"),
    "the first bytes of a PNG": picture()[:16],
    "the first bytes of a JPEG": picture("JPEG")[:20],
    "the first bytes of a WebP": picture("WEBP")[:20],
    "a PNG of no width": claims(0, 32),
    "a bomb of 4 gigapixels": claims(65_535, 65_535),
    "a bomb as wide as a number": claims(2**32 - 1, 1),
    "a JPEG that ends in its header": b"\xff\xd8" + b"\xff\xe1\xff\xff" + b"\x00" * 100,
    "a JPEG of nothing but fill": b"\xff\xd8" + b"\xff" * 1_000_000,
    "a byte above 4 MiB": picture() + bytes(MAX_BYTES - len(picture()) + 1),
}
"""What no decoder has to see."""
BROKEN_PIXELS = {
    "half a PNG": noise("PNG")[:1000],
    "half a JPEG": noise("JPEG")[:-300],
    "a PNG without pixels": claims(32, 32),
    "a PNG with a wrong checksum": noise("PNG").replace(b"IDAT", b"IDAU"),
}
"""What only a decoder finds out, and so a node."""


def upload(name: str, content: bytes, status: int = 400) -> list[Hostile]:
    """One picture on every way in: as image and as mask of a form, as a data URL, to be varied."""
    url = {"image_url": "data:image/png;base64," + base64.b64encode(content).decode()}
    return [
        Hostile(f"{name}", EDITS, form(PROMPT, part("image", content, file=True)), FORM, status),
        Hostile(f"{name} as a mask", EDITS, form(PROMPT, GOOD, part("mask", content, file=True)), FORM, status),
        Hostile(f"{name} in JSON", EDITS, orjson.dumps({"prompt": "x", "images": [url]}), status=status),
        Hostile(f"{name}", VARIATIONS, form(part("image", content, file=True)), FORM, status),
    ]


FORMS = [
    Hostile("no boundary", EDITS, form(PROMPT, GOOD), "multipart/form-data"),
    Hostile("an empty boundary", EDITS, form(PROMPT, GOOD), "multipart/form-data; boundary="),
    Hostile("another boundary", EDITS, form(PROMPT, GOOD), "multipart/form-data; boundary=other"),
    Hostile("an endless boundary", EDITS, form(PROMPT, GOOD), f"multipart/form-data; boundary={'b' * 4000}"),
    Hostile("no end", EDITS, PROMPT + GOOD[:-30], FORM),
    Hostile("nothing", EDITS, b"", FORM),
    Hostile("an end alone", EDITS, form(), FORM),
    Hostile("a part without a name", EDITS, form(part("", b"x"), PROMPT, GOOD), FORM, 200),
    Hostile("no disposition", EDITS, form(f"--{BOUNDARY}\r\nContent-Type: a/b\r\n\r\nx\r\n".encode(), PROMPT, GOOD), FORM),
    Hostile("endless headers", EDITS, form(f"--{BOUNDARY}\r\n".encode() + b"X-A: b\r\n" * 5000 + b"\r\nx\r\n"), FORM),
    Hostile("an endless header", EDITS, f"--{BOUNDARY}\r\nX-A: ".encode() + b"a" * 2_000_000, FORM),
    Hostile("an endless text", EDITS, form(part("prompt", b"x" * 1_000_000), GOOD), FORM),
    Hostile("ten thousand fields", EDITS, form(PROMPT, *[part("a", b"b")] * 10_000, GOOD), FORM),
    Hostile("thirty images", EDITS, form(PROMPT, *[part("image[]", picture(), file=True)] * 30), FORM),
    Hostile("a field twice", EDITS, form(PROMPT, part("n", b"0"), part("n", b"1"), GOOD), FORM, 200),
    Hostile("text for an image", EDITS, form(PROMPT, part("image", b"a.png")), FORM),
    Hostile("text for a mask", EDITS, form(PROMPT, GOOD, part("mask", b"a.png")), FORM),
    Hostile("a file for a prompt", EDITS, form(part("prompt", b"x", file=True), GOOD), FORM),
    Hostile("a file under a strange name", EDITS, form(PROMPT, GOOD, part("../../etc/passwd", b"x", file=True)), FORM),
    Hostile("a prompt that is no UTF-8", EDITS, form(part("prompt", b"\xff\xfe"), GOOD), FORM),
    Hostile("a prompt with a NUL", EDITS, form(part("prompt", b"a\x00b"), GOOD), FORM),
    Hostile("numbers of another script", EDITS, form(PROMPT, GOOD, part("n", "１".encode())), FORM),
    Hostile("nan", EDITS, form(PROMPT, GOOD, part("strength", b"nan")), FORM),
    Hostile("an endless number", EDITS, form(PROMPT, GOOD, part("seed", b"9" * 100_000)), FORM),
    Hostile("deep names", EDITS, form(PROMPT, GOOD, part("a" + "[b]" * 1000, b"x")), FORM, 200),
    Hostile("deep extra_params", EDITS, form(PROMPT, GOOD, part("extra_params", b"[" * 100_000)), FORM),
    Hostile("a form that is called JSON", EDITS, form(PROMPT, GOOD)),
    Hostile("a form of another kind", EDITS, b"prompt=x&image=y", "application/x-www-form-urlencoded"),
    Hostile("JSON for a variation", VARIATIONS, b'{"image": "x"}'),
    Hostile("base64 that is none", EDITS, b'{"prompt":"x","images":[{"image_url":"data:image/png;base64,@@"}]}'),
    Hostile("a file of this machine", EDITS, b'{"prompt":"x","images":[{"image_url":"file:///etc/passwd"}]}'),
    Hostile("an address within", EDITS, b'{"prompt":"x","images":[{"image_url":"http://169.254.169.254/"}]}'),
    Hostile("a hundred images", EDITS, orjson.dumps({"prompt": "x", "images": [{"image_url": "data:,"}] * 100})),
]
UPLOADS = [each for name, content in PICTURES.items() for each in upload(name, content)]
UNREADABLE = [each for name, content in BROKEN_PIXELS.items() for each in upload(name, content)]
UNREADABLE.append(
    Hostile("sixteen megapixels out of nothing", EDITS, form(PROMPT, part("image", claims(4096, 4096), file=True)), FORM)
)
CORPUS = [*GENERATION, *FORMS, *UPLOADS]


def answer_in_time(client: httpx.Client, hostile: Hostile) -> httpx.Response:
    """The answer, which must come soon. A slow one is asked for again: other work on the machine is not the body's doing."""
    headers = {"content-type": hostile.content_type} if hostile.content_type else {}
    took_s = []
    while not took_s or (min(took_s) >= WITHIN_S and len(took_s) < 3):
        began_s = time.monotonic()
        reply = client.post(hostile.path, content=hostile.body, headers=headers)
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < WITHIN_S, took_s
    return reply
