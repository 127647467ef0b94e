"""What an uploaded file is, by its first bytes: format and size in pixels, without decoding anything.

Three formats are known; a library that opens forty would open the other thirty-seven too. Decoders are not asked:
some reserve memory for the whole picture as soon as they have read its header.
"""

from dataclasses import dataclass

from common.images_api.request import OutputFormat

# JPEG start-of-frame markers (ITU T.81, table B.1): C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's first bytes say. `media_type` is set for what is recognised but not taken."""

    format: OutputFormat | None
    media_type: str
    width_px: int = 0
    height_px: int = 0


# Recognised only to be named in the refusal.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"%PDF", "application/pdf"),
    (b"<svg", "image/svg+xml"),
    (b"<?xml", "application/xml"),
    (b"PK\x03\x04", "application/zip"),
)


def sniff(content: bytes) -> Header | None:
    """The header of a PNG, JPEG or WebP file, or the type of another; None for one of the three whose header is broken."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    if content[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return Header(None, "image/avif" if content[8:12] == b"avif" else "image/heic")
    for magic, media_type in _OTHERS:
        if content.startswith(magic):
            return Header(None, media_type)
    return Header(None, "application/octet-stream")


def _png(content: bytes) -> Header | None:
    # The first chunk must be IHDR: length 13, type, width, height (PNG specification, 11.2.2).
    if len(content) < 33 or content[8:16] != b"\x00\x00\x00\rIHDR":
        return None
    return _header(OutputFormat.PNG, int.from_bytes(content[16:20]), int.from_bytes(content[20:24]))


def _jpeg(content: bytes) -> Header | None:
    at = 2
    while at + 9 < len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _START_OF_FRAME:
            height, width = int.from_bytes(content[at + 5 : at + 7]), int.from_bytes(content[at + 7 : at + 9])
            return _header(OutputFormat.JPEG, width, height)
        else:
            length = int.from_bytes(content[at + 2 : at + 4])
            if length < 2:
                return None
            at += 2 + length
    return None


def _webp(content: bytes) -> Header | None:
    # WebP container specification: VP8 (lossy), VP8L (lossless), VP8X (extended).
    kind, data = content[12:16], content[20:30]
    if len(data) < 10:
        return None
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    elif kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    else:
        return None
    return _header(OutputFormat.WEBP, width, height)


def _header(output_format: OutputFormat, width_px: int, height_px: int) -> Header | None:
    if not width_px or not height_px:
        return None
    return Header(output_format, output_format.media_type, width_px, height_px)
