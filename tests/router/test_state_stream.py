"""What nodes say of themselves, as they say it: routers know at once, and look for themselves where nothing is said."""

import asyncio
import time

from common.node_api import JobPhase, JobStatus, NodePhase
from router.node_client import SILENT_S
from router.placement import Health
from tests.fakes.node import MODEL, FakeNode
from tests.router.conftest import House, MakeHouse, until

NEVER_S = 3600
"""Time between looks where only the stream can have brought the news."""


def job(step: int) -> JobStatus:
    return JobStatus(run_id="run_of_another", model=MODEL, phase=JobPhase.RUNNING, step=step, steps=4, work_units=40)


def heard(house: House) -> bool:
    return all(node.listeners for node in house.nodes.values())


async def listened_to(make_house: MakeHouse, **settings: float) -> tuple[House, FakeNode]:
    """A router that listens to its one node, and will not look at it again by itself."""
    house = await make_house("a", **({"probe_interval_s": NEVER_S} | settings))
    await until(lambda: heard(house))
    return house, house.nodes["a"]


async def test_a_router_knows_of_each_step_without_a_look(make_house: MakeHouse):
    house, fake = await listened_to(make_house)
    node, seen = house.services.registry.get("a"), []

    for step in range(4):
        fake.jobs["run_of_another"] = job(step)
        fake.teller.changed()
        await until(lambda: node.status is not None and node.status.jobs == [job(step)], within_s=1)  # noqa: B023
        seen.append(house.services.registry.fleet.candidates[node.id].wait_s(time.monotonic()))

    assert [round(each / 10) for each in seen] == [4, 3, 2, 1]


async def test_a_model_that_another_router_is_asked_for_is_wanted_here_as_well_and_each_run_counts_once(make_house: MakeHouse):
    house, fake = await listened_to(make_house)
    fleet, node = house.services.registry.fleet, house.services.registry.get("a")
    began_s = time.monotonic()
    assert fleet.demand.nodes_kept_busy(MODEL, began_s) == 0

    wanted = []
    for step in range(2):
        fake.jobs["run_of_another"] = job(step)
        fake.teller.changed()
        await until(lambda: node.status is not None and node.status.jobs == [job(step)], within_s=1)  # noqa: B023
        wanted.append(fleet.demand.nodes_kept_busy(MODEL, began_s))

    assert wanted[0] > 0
    assert wanted[1] == wanted[0]


async def test_a_node_that_says_it_drains_gets_nothing_more(make_house: MakeHouse):
    house, fake = await listened_to(make_house, no_capacity_wait_s=0)
    fake.phase = NodePhase.DRAINING
    fake.teller.changed()
    await until(lambda: not house.services.registry.fleet.has_place, within_s=1)

    assert (await house.generate()).status_code == 503
    assert not fake.started


async def test_a_node_whose_stream_and_door_close_is_gone_at_once(make_house: MakeHouse):
    house, fake = await listened_to(make_house)
    node, began_s = house.services.registry.get("a"), time.monotonic()

    fake.faults.mode = "status_500"
    fake.teller.changed()
    await until(lambda: node.health is Health.OFFLINE)

    assert node.lost.is_set()
    assert time.monotonic() - began_s < 2


async def test_a_node_that_falls_silent_gets_nothing_more_and_is_given_up_when_a_look_hangs_too(make_house: MakeHouse):
    house, fake = await listened_to(make_house, probe_timeout_s=0.5)
    node, began_s, verdicts = house.services.registry.get("a"), time.monotonic(), list[Health]()

    fake.faults.mode = "silent"
    while node.health is not Health.OFFLINE:
        if not verdicts or verdicts[-1] is not node.health:
            verdicts.append(node.health)
        await asyncio.sleep(0.01)

    assert verdicts == [Health.ONLINE, Health.ERROR]
    assert SILENT_S <= time.monotonic() - began_s < SILENT_S + 3


async def test_where_there_is_no_stream_a_router_looks(make_house: MakeHouse):
    house = await make_house("a")
    fake, node = house.nodes["a"], house.services.registry.get("a")
    fake.faults.mode = "no_stream"
    fake.teller.changed()
    await until(lambda: not heard(house))

    fake.jobs["run_of_another"] = job(2)
    await until(lambda: node.status is not None and node.status.jobs == [job(2)])

    assert node.health is Health.ONLINE


async def test_a_node_that_moves_is_listened_to_where_it_is_now(make_house: MakeHouse):
    house = await make_house("a", "b")
    await until(lambda: heard(house))
    b = house.services.registry.get("b")
    await house.client.delete("/admin/nodes/b")
    moved = await house.client.patch("/admin/nodes/a", json={"url": b.record.url})
    assert moved.json()["state"] == "online"

    house.nodes["b"].jobs["run_of_another"] = job(3)
    house.nodes["b"].teller.changed()
    a = house.services.registry.get("a")

    await until(lambda: a.status is not None and a.status.jobs == [job(3)])
    await until(lambda: not house.nodes["a"].listeners)
