"""Places at nodes: each is given back, whenever its client leaves."""

import asyncio
import time

import pytest

from common.node_api import JobPhase, JobStatus
from router import queue
from router.candidates import candidate_of
from router.circuit import FAILURES
from router.placement import Ask
from router.registry import Node
from router.services import Services
from router.wishes import Wishes
from tests.fakes.node import MODEL
from tests.router.conftest import MakeHouse


def place(services: Services, run_id: str, *, arrived_s: float | None = None) -> asyncio.Task[Node]:
    ask, deadline_s = Ask(MODEL, "generation", 1.0), time.monotonic() + 30

    async def wait() -> Node:
        ticket = services.queue.enter(run_id, ask, key_id=None, wishes=Wishes(), deadline_s=deadline_s, arrived_s=arrived_s)
        return await services.queue.granted(ticket)

    return asyncio.create_task(wait())


async def test_a_place_that_comes_free_as_those_who_wait_leave_goes_to_one_who_stays(make_house: MakeHouse):
    services = (await make_house("a", node_depth=0)).services
    node = await place(services, "first")
    leaving = [place(services, f"leaving {number}") for number in range(3)]
    staying = place(services, "staying")
    await asyncio.sleep(0)

    for each in leaving:
        each.cancel()
    services.queue.release(node, "first")
    await asyncio.gather(*leaving, return_exceptions=True)

    assert await asyncio.wait_for(staying, 5) is node
    assert list(node.ours) == ["staying"]
    assert len(services.queue) == 0


async def test_a_run_whose_request_came_earlier_goes_before_others_of_its_key_whatever_it_was_kept_by(make_house: MakeHouse):
    services = (await make_house("a", node_depth=0)).services
    node = await place(services, "first")
    came_s = time.monotonic()
    later = place(services, "later")
    await asyncio.sleep(0)
    earlier = place(services, "earlier", arrived_s=came_s)
    await asyncio.sleep(0)

    services.queue.release(node, "first")
    await asyncio.wait_for(earlier, 5)

    assert list(node.ours) == ["earlier"]
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)


async def test_a_place_granted_in_the_moment_of_leaving_is_given_back(make_house: MakeHouse):
    services = (await make_house("a", node_depth=0)).services
    node = await place(services, "first")
    leaving = place(services, "leaving")
    await asyncio.sleep(0)

    services.queue.release(node, "first")
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    assert node.ours == {}


async def test_a_run_that_finds_nobody_waiting_and_a_place_is_not_in_line_for_a_moment(make_house: MakeHouse):
    services = (await make_house("a", node_depth=0)).services
    ask, deadline_s = Ask(MODEL, "generation", 1.0), time.monotonic() + 30

    ticket = services.queue.enter("run", ask, key_id="k", wishes=Wishes(), deadline_s=deadline_s)

    assert ticket.node is services.registry.get("a")
    assert await services.queue.granted(ticket) is ticket.node
    assert (ticket not in services.queue.line, ticket.granted) == (True, None)
    foreseen = services.queue.foreseen("run")
    assert foreseen is not None
    assert (foreseen.position, services.queue.pick("run").node) == (0, "a")
    services.queue.withdraw(ticket)
    assert ticket.node.ours == {}


async def test_a_node_is_shown_with_what_it_has_to_do_as_a_look_at_all_of_it_would_show_it(make_house: MakeHouse):
    registry = (await make_house("a", node_depth=1)).services.registry
    node, ask = registry.get("a"), Ask(MODEL, "generation", 3.0)
    assert node.status is not None
    job = JobStatus(run_id="run_2", model=MODEL, phase=JobPhase.RUNNING, work_units=3.0)
    told = node.status.model_copy(update={"jobs": [job]})

    def shown() -> bool:
        return registry.fleet.candidates[node.id] == candidate_of(node.known(registry.costs.of(node.id)), depth=1)

    for number in range(3):
        registry.sent(node, f"run_{number}", ask)
        assert shown()
    await registry.seen(node, told)
    assert shown()
    for number in (2, 0):
        registry.ended(node, f"run_{number}")
        assert shown()
    for number in range(FAILURES):
        registry.model_failed(node, MODEL, f"failed {number}")
    registry.sent(node, "run_3", ask)
    assert shown()
    registry.ended(node, "run_3")
    registry.ended(node, "run_1")
    assert shown()


async def test_one_that_comes_when_all_who_waited_have_left_is_not_foreseen_behind_them(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
):
    # As on a fleet too large to play the line forward for each that comes.
    monkeypatch.setattr(queue, "LOOKS_OF_ONE", 0)
    services = (await make_house("a", node_depth=0)).services
    ask, deadline_s = Ask(MODEL, "generation", 10.0), time.monotonic() + 30

    def finish_s(run_id: str) -> float:
        foreseen = services.queue.enter(run_id, ask, key_id=None, wishes=Wishes(), deadline_s=deadline_s).foreseen
        assert foreseen is not None
        assert foreseen.finish_s is not None
        return foreseen.finish_s

    alone_s = finish_s("runs")
    behind_s = [finish_s(f"leaves {number}") for number in range(5)]
    for ticket in services.queue.line:
        services.queue.withdraw(ticket)

    assert behind_s[-1] == pytest.approx(6 * alone_s, rel=0.1)
    assert finish_s("stays") == pytest.approx(2 * alone_s, rel=0.1)
