"""One body out of several: the same bytes as of one, and none of a part that is not what was recorded."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from common.images_api import Picture, answer_bytes
from router.joined import PartAnswer, body_of, length_of
from router.wire import Broken

HEAD: dict[str, Any] = {"id": "run_1", "prompt": 'a "cat",\\"data":[', "created": 5}


async def in_chunks(body: bytes, size: int) -> AsyncGenerator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def parts(size: int, *, told: dict[str, Any] | None = None) -> tuple[list[PartAnswer], list[Picture]]:
    pictures = [Picture(7 + i, f"img_{i}", content=bytes([i]) * 1000) for i in range(3)]
    bodies = [answer_bytes(HEAD, each) for each in (pictures[:2], pictures[2:])]
    return [PartAnswer(told or HEAD, in_chunks(body, size), len(body)) for body in bodies], pictures


@pytest.mark.parametrize("size", [1, 7, 100, 1_000_000])
async def test_it_is_what_one_node_would_have_answered(size: int):
    answers, pictures = parts(size)
    head = HEAD | {"id": "run_2"}

    length = length_of(head, answers)
    body = b"".join([chunk async for chunk in body_of(head, answers)])

    assert body == answer_bytes(head, pictures)
    assert len(body) == length


async def test_a_part_that_does_not_begin_as_it_was_recorded_is_not_passed_on():
    answers, _ = parts(100, told=HEAD | {"created": 6})

    with pytest.raises(Broken):
        assert [chunk async for chunk in body_of(HEAD, answers)]


async def test_no_more_than_a_chunk_of_the_bodies_is_held():
    answers, _ = parts(50)
    largest = max([len(chunk) async for chunk in body_of(HEAD, answers)])

    assert largest <= max(50, len(answers[0].opening))
