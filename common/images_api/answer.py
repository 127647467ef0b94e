"""The body of a successful answer: OpenAI's ImagesResponse, with base64 spliced in rather than serialised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture on its way out: either its bytes or a url, never both."""

    seed: int
    asset_id: str
    content: bytes | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if (self.content is None) == (self.url is None):
            raise ValueError("a picture is answered either as bytes or as a url")


def image_tokens(width_px: int, height_px: int) -> int:
    """Output tokens of one picture: its number of 16 x 16 px patches, rounded up on both sides.

    OpenAI's own figures depend on its models; this one says what the picture cost here: latent patches of the
    f8 autoencoders, two by two, as transformers such as Z-Image and Flux see them.
    """
    return -(-width_px // 16) * -(-height_px // 16)


def usage(
    *, text_tokens: int, pictures: int, width_px: int, height_px: int, inputs_px: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """OpenAI's `usage` block; the totals add up. inputs_px: width and height of each uploaded picture."""
    output = pictures * image_tokens(width_px, height_px)
    image_input = sum(image_tokens(*size) for size in inputs_px)
    return {
        "input_tokens": text_tokens + image_input,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": image_input},
        "output_tokens": output,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        "total_tokens": text_tokens + image_input + output,
    }


def answer_bytes(head: dict[str, Any], pictures: Sequence[Picture]) -> bytes:
    """`head` (created, size, usage, ...) and `data` as one JSON body.

    Base64 needs no escaping, so it is joined between two serialised halves: several times less work than
    handing megabytes of text to a JSON library. Keys are sorted: PostgreSQL keeps no order, and an answer that is written
    again out of the catalog must be the same to the byte.
    """
    parts = [orjson.dumps(head, option=orjson.OPT_SORT_KEYS)[:-1], b',"data":[' if head else b'"data":[']
    for index, picture in enumerate(pictures):
        item: dict[str, Any] = {"seed": picture.seed, "asset_id": picture.asset_id}
        if picture.url is not None:
            item["url"] = picture.url
        parts += [b"," if index else b"", orjson.dumps(item)[:-1]]
        if picture.content is not None:
            parts += [b',"b64_json":"', pybase64.b64encode(picture.content), b'"']
        parts.append(b"}")
    parts.append(b"]}")
    return b"".join(parts)
