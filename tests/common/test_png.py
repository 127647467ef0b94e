"""The PNG writer: files that any reader opens, with the very pixels and texts, at a fraction of the usual cost."""

import base64
import io
import time
from collections.abc import Callable

import pytest
from PIL import Image

from common.images_api import OutputFormat
from common.pictures import encode
from common.png import png_bytes


def grainy(width: int, height: int) -> Image.Image:
    """Soft shapes under a little noise, as photographs are."""
    soft = Image.effect_noise((9, 7), 90).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(soft, Image.effect_noise((width, height), 20).convert("RGB"), 0.15)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 300), (40, 24), (513, 255)])
def test_a_file_holds_the_very_pixels(size: tuple[int, int]):
    picture = grainy(*size)

    read = Image.open(io.BytesIO(png_bytes(picture, {})))

    assert (read.format, read.mode, read.size) == ("PNG", "RGB", size)
    assert read.tobytes() == picture.tobytes()


def test_texts_of_any_script_are_read_back():
    texts = {"parameters": "青い円\nSteps: 4", "aquatint": '{"seed": 41}'}

    with Image.open(io.BytesIO(png_bytes(grainy(8, 8), texts))) as read:
        read.verify()
        assert read.info == texts


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def test_from_pixels_to_base64_costs_a_fraction_of_pillows_default_and_the_file_is_hardly_larger():
    picture, usual = grainy(1024, 1024), io.BytesIO()

    def quick() -> bytes:
        return base64.b64encode(encode(picture, output_format=OutputFormat.PNG))

    # The best of several in turns: other processes only ever add.
    pairs = [(cpu_s(quick), cpu_s(lambda: picture.save(io.BytesIO(), "PNG"))) for _ in range(5)]
    picture.save(usual, "PNG")

    assert min(mine for mine, _ in pairs) < min(its for _, its in pairs) / 4
    assert len(encode(picture, output_format=OutputFormat.PNG)) < 1.15 * len(usual.getvalue())
