"""What a request is known by when it comes again."""

import asyncio

import pytest

from common.images_api.request import OutputFormat, Pieces, Upload
from router.digest import AT_ONCE_BYTES, digest_of


def upload(*pieces: bytes) -> Upload:
    return Upload("image", Pieces(pieces), OutputFormat.PNG, 8, 8)


@pytest.mark.parametrize("size", [1000, 2 * AT_ONCE_BYTES])
async def test_neither_pieces_nor_the_order_of_fields_change_what_a_request_is_known_by(size: int):
    content = bytes(range(250)) * (size // 250)
    whole, cut = upload(content), upload(content[:70], content[70:])

    orders: list[dict[str, int]] = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
    known = {await digest_of([says], [("image", each)]) for each in (whole, cut) for says in orders}

    assert len(known) == 1
    assert await digest_of([orders[0]], [("mask", whole)]) not in known
    assert await digest_of([{"a": 1}], [("image", whole)]) not in known
    assert await digest_of([orders[0]], [("image", upload(content[:-1]))]) not in known


async def test_large_uploads_are_not_hashed_while_others_wait():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    await digest_of([], [("image", upload(bytes(32 * 1024 * 1024)))])
    beside.cancel()

    assert turns > 1
