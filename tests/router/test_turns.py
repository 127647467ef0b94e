"""Requests begin a few at a time, and in their order."""

import asyncio
import itertools

from router.turns import AT_ONCE, Turns

MANY = 20 * AT_ONCE


async def begin(number: int, turns: Turns, begun: list[int]) -> None:
    await turns.come(number)
    begun.append(number)


async def test_of_many_that_come_at_once_a_few_begin_in_each_turn_of_the_loop_and_all_in_their_order():
    turns, begun, seen = Turns(), list[int](), list[int]()
    coming = asyncio.gather(*(begin(number, turns, begun) for number in range(MANY)))

    while not coming.done():
        seen.append(len(begun))
        await asyncio.sleep(0)

    assert max(after - before for before, after in itertools.pairwise(seen)) <= AT_ONCE
    assert begun == list(range(MANY))


async def test_whoever_was_kept_elsewhere_goes_before_those_that_came_later():
    turns, begun = Turns(), list[int]()
    later = [asyncio.ensure_future(begin(number, turns, begun)) for number in range(MANY // 2, MANY)]
    await asyncio.sleep(0)
    earlier = [asyncio.ensure_future(begin(number, turns, begun)) for number in range(MANY // 2)]
    await asyncio.gather(*later, *earlier)

    # Two turns may have begun before.
    assert begun.index(0) <= 2 * AT_ONCE
    assert [number for number in begun if number < MANY // 2] == list(range(MANY // 2))


async def test_one_that_leaves_while_it_waits_takes_nobodys_turn():
    turns, begun = Turns(), list[int]()
    coming = [asyncio.ensure_future(begin(number, turns, begun)) for number in range(MANY)]
    await asyncio.sleep(0)
    for each in coming[AT_ONCE : MANY // 2]:
        each.cancel()
    await asyncio.gather(*coming, return_exceptions=True)

    assert begun == [*range(AT_ONCE), *range(MANY // 2, MANY)]
