"""The child: one file on stdin, its pixels on stdout as a frame. `python -m node.decoding MAX_PIXELS MEMORY_BYTES SECONDS`."""

import io
import resource
import sys

from PIL import Image, ImageOps

from node.worker.frames import pack

FORMATS = ("PNG", "JPEG", "WEBP")


def main() -> None:
    """Decode, turn upright, normalise. Exit code 1: it is no picture we take."""
    max_pixels, memory_bytes, seconds = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        # Only the first frame is read: phones store several in one JPEG (MPO), and animations are no input.
        with Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=FORMATS) as opened:
            picture = normalised(opened)
    except Exception:
        # Decoders raise many kinds; each means the same to the client, and their texts mean nothing to it.
        sys.exit(1)
    sys.stdout.buffer.write(pack({"mode": picture.mode, "size": list(picture.size)}, [picture.tobytes()]))
    sys.stdout.buffer.flush()


def normalised(opened: Image.Image) -> Image.Image:
    """RGBA if the file has transparency, else RGB; upright; nothing but pixels."""
    turned = ImageOps.exif_transpose(opened)
    if turned.mode.startswith("I") or turned.mode == "F":
        # 16 bits a channel: the upper eight. `convert` would cut off everything above 255 instead.
        turned = turned.point(lambda value: value / 256).convert("L")
    transparent = turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info
    return turned.convert("RGBA" if transparent else "RGB")


if __name__ == "__main__":
    main()
