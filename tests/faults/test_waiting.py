"""Many that wait, in the small: `waiting.py` measures the same with ten thousand."""

from tests.faults.waiting import measure

COUNT = 300


async def test_all_that_wait_are_answered_and_those_of_one_key_in_the_order_in_which_they_came():
    found = await measure(COUNT, held_s=0.5)

    assert found["answered 200"] == COUNT
    assert found["furthest out of order"] == 0
    assert found["as they were written"] == 0
