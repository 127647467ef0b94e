"""What is to be done at the end of an answer's body is done once, however it ends."""

from collections.abc import AsyncGenerator

import pytest

from router.body import Body, Whole
from router.wire import Broken


async def numbers(count: int, *, then: Exception | None = None) -> AsyncGenerator[bytes]:
    for number in range(count):
        yield b"%d" % number
    if then is not None:
        raise then


async def test_a_body_that_was_read_to_its_end_is_whole():
    told: list[bool] = []
    body = Body(numbers(3), told.append)

    assert [chunk async for chunk in body] == [b"0", b"1", b"2"]
    await body.aclose()

    assert told == [True]


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_one_that_nobody_reads_on_is_not_whether_or_not_any_of_it_was_read(read: int):
    told: list[bool] = []
    body = Body(numbers(3), told.append)
    for _ in range(read):
        await anext(body)

    await body.aclose()
    await body.aclose()

    assert told == [False]


async def test_one_that_breaks_off_is_not_and_says_why():
    told: list[bool] = []
    body = Body(numbers(1, then=Broken("it was cut")), told.append)

    with pytest.raises(Broken, match="it was cut"):
        [chunk async for chunk in body]
    await body.aclose()

    assert told == [False]


async def test_of_a_body_in_another_both_are_told_when_the_outer_is_closed_unread():
    told: list[str] = []

    async def inner(whole: bool) -> None:
        told.append(f"inner {whole}")

    await Body(Body(Whole(b"a picture"), inner), lambda whole: told.append(f"outer {whole}")).aclose()

    assert told == ["inner False", "outer False"]


@pytest.mark.parametrize("content", [b"a picture", b""])
async def test_one_that_is_there_already_is_read_or_taken_and_then_is_at_its_end(content: bytes):
    read, taken = Whole(content), Whole(content)

    assert [chunk async for chunk in read] == [content]
    assert taken.take() == content

    assert [chunk async for chunk in taken] == []
    assert (read.take(), taken.take()) == (b"", b"")


async def test_of_one_that_is_there_already_and_was_let_go_of_nothing_is_left():
    body = Whole(b"a picture")

    await body.aclose()

    assert [chunk async for chunk in body] == []
