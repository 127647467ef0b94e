"""Places at nodes: each is given back, whenever its client leaves."""

import asyncio
import time

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
