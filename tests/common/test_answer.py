"""What goes out: the body, the links, the files."""

import base64
import io
import json

import pytest
from PIL import Image

from common.errors import Gone, NotFound
from common.images_api import AssetLinks, OutputFormat, Picture, answer_bytes, usage
from common.pictures import encode


def test_the_answer_is_json_with_the_bytes_as_base64():
    body = answer_bytes(
        {"created": 5, "size": "8x8"}, [Picture(41, "img_a", content=b"\x00\xff"), Picture(42, "img_b", url="http://x/y.png")]
    )

    answer = json.loads(body)
    assert answer["created"] == 5
    assert base64.b64decode(answer["data"][0]["b64_json"]) == b"\x00\xff"
    assert answer["data"][1] == {"seed": 42, "asset_id": "img_b", "url": "http://x/y.png"}


def test_a_picture_is_never_answered_twice_over():
    with pytest.raises(ValueError, match="either"):
        Picture(1, "img_a", content=b"x", url="http://x")


def test_the_totals_of_usage_add_up():
    block = usage(text_tokens=7, pictures=2, width_px=1280, height_px=670, inputs_px=[(64, 17)])

    assert block["output_tokens"] == 2 * 80 * 42
    assert block["input_tokens_details"] == {"text_tokens": 7, "image_tokens": 4 * 2}
    assert block["total_tokens"] == block["input_tokens"] + block["output_tokens"]


LINKS = AssetLinks("secret")


def _parts(link: str) -> tuple[str, str, str]:
    path, _, query = link.partition("?")
    values = dict(pair.split("=") for pair in query.split("&"))
    return path.rpartition("/")[2], values["expires"], values["signature"]


def test_a_link_leads_to_its_image_until_it_expires():
    link = LINKS.sign("https://images.example.com/", "img_a", OutputFormat.JPEG, now_s=1000, lifetime_s=60)

    assert link.startswith("https://images.example.com/v1/assets/img_a.jpg?")
    assert LINKS.verify(*_parts(link), now_s=1060) == "img_a"
    with pytest.raises(Gone):
        LINKS.verify(*_parts(link), now_s=1061)


@pytest.mark.parametrize("tampered", ["name", "expires", "signature", "secret", "empty"])
def test_a_link_that_was_changed_leads_nowhere(tampered: str):
    name, expires, signature = _parts(LINKS.sign("http://x", "img_a", OutputFormat.PNG, now_s=1000))
    links = LINKS
    if tampered == "name":
        name = "img_b.png"
    elif tampered == "expires":
        expires = str(int(expires) + 1)
    elif tampered == "signature":
        signature = "é" * 64
    elif tampered == "secret":
        links = AssetLinks("another")
    else:
        expires = signature = ""

    with pytest.raises(NotFound):
        links.verify(name, expires, signature, now_s=1000)


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_a_file_is_what_it_says_and_remembers_how_it_was_made(output_format: OutputFormat):
    made = "青い円\nSteps: 4, Seed: 41"

    file = encode(Image.new("RGB", (40, 24), "red"), output_format=output_format, parameters=made, recipe='{"seed": 41}')

    image = Image.open(io.BytesIO(file))
    assert image.format == output_format.value.upper()
    assert image.size == (40, 24)
    if output_format is OutputFormat.PNG:
        assert (image.info["parameters"], image.info["aquatint"]) == (made, '{"seed": 41}')
    else:
        assert image.getexif()[0x010E] == '{"seed": 41}'
        assert image.getexif().get_ifd(0x8769)[0x9286] == b"UNICODE\0" + made.encode("utf-16-be")


def test_lower_compression_quality_makes_smaller_files():
    noise = Image.effect_noise((64, 64), 80).convert("RGB")

    sizes = [len(encode(noise, output_format=OutputFormat.WEBP, compression=c)) for c in (5, 95)]

    assert sizes[0] < sizes[1]
