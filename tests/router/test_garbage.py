"""Whole collections of garbage: none while many wait, and one when few do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from router.garbage import FEW, Garbage, make_no_whole_collections
from tests.router.conftest import MakeHouse


class Cycle:
    """Freed by a collection only."""

    alive = 0

    def __init__(self) -> None:
        self.me = self
        Cycle.alive += 1

    def __del__(self) -> None:
        Cycle.alive -= 1


@contextmanager
def own_settings() -> Iterator[None]:
    """What this process had is what it has after."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()


def whole_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def test_however_many_objects_grow_old_no_whole_collection_is_made():
    with own_settings():
        make_no_whole_collections()
        before = whole_collections()
        grown_old = [[number] for number in range(1_000_000)]

        assert whole_collections() == before
        assert len(grown_old) == 1_000_000


async def test_garbage_stays_while_many_requests_are_open_and_goes_when_few_are():
    open_requests = FEW + 1
    tidy = Garbage(lambda: open_requests)
    gc.collect()
    Cycle.alive = 0
    old = Cycle()
    gc.collect()
    del old

    await tidy.look()
    assert Cycle.alive == 1
    open_requests = FEW
    await tidy.look()
    assert Cycle.alive == 0


async def test_a_router_that_is_never_quiet_collects_all_the_same_in_time():
    before = whole_collections()

    await Garbage(lambda: FEW + 1, most_s=3600).look()
    assert whole_collections() == before
    await Garbage(lambda: FEW + 1, most_s=0).look()
    assert whole_collections() == before + 1


async def test_what_was_held_for_a_request_goes_with_its_answer_and_waits_for_no_collection(make_house: MakeHouse):
    house = await make_house("a")
    assert (await house.generate()).status_code == 200
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            assert (await house.generate()).status_code == 200
        held = [each for each in gc.get_objects() if isinstance(each, RequestResponseCycle)]
    finally:
        gc.enable()

    # At the router and at its node, each connection that is open has the last one, or the present.
    assert len(held) < 10
