"""The node's state as it is told to those who listen: at once, not too often, and never what is no longer true."""

import asyncio
import time
from contextlib import aclosing

from common.node_api import DeviceStatus, JobPhase, JobStatus, NodePhase, NodeStatus
from common.state_lines import SAID_EVERY_S, StateReader
from node.telling import LEAST_APART_S, Teller


class Work:
    """A node that is at a step."""

    def __init__(self) -> None:
        self.step = 0
        self.holds = True
        self.teller = Teller(self.status, holds_runs=lambda: self.holds)

    def status(self) -> NodeStatus:
        job = JobStatus(run_id="run_1", model="m", phase=JobPhase.RUNNING, step=self.step, steps=1000, work_units=1)
        device = DeviceStatus(kind="cpu", name="it", memory_total_bytes=1, memory_free_bytes=1)
        return NodeStatus(
            name="a",
            version="0",
            phase=NodePhase.DRAINING if self.teller.leaving else NodePhase.READY,
            device=device,
            models=[],
            jobs=[job] if self.holds else [],
        )

    def get_on(self) -> None:
        self.step += 1
        self.teller.changed()


async def told_by(work: Work, reader: StateReader, until_step: int) -> int:
    """Lines it takes to hear of a step."""
    count = 0
    async with aclosing(work.teller.lines()) as lines:
        async for line in lines:
            count += 1
            reader.take(line)
            if reader.status is not None and reader.status.jobs[0].step >= until_step:
                break
    return count


async def test_a_change_is_told_at_once():
    work, began_s = Work(), time.monotonic()
    asyncio.get_running_loop().call_later(2 * LEAST_APART_S, work.get_on)

    count = await told_by(work, StateReader(max_bytes=10_000), 1)

    assert count == 2
    assert time.monotonic() - began_s < SAID_EVERY_S


async def test_quick_changes_go_out_together():
    work = Work()

    async def hurry() -> None:
        for _ in range(200):
            work.get_on()
            await asyncio.sleep(0.001)

    began_s = time.monotonic()
    _, count = await asyncio.gather(hurry(), told_by(work, StateReader(max_bytes=10_000), 200))

    assert count <= (time.monotonic() - began_s) / LEAST_APART_S + 2


async def test_who_listens_slowly_hears_what_is_true_then():
    work, reader = Work(), StateReader(max_bytes=10_000)
    async with aclosing(work.teller.lines()) as lines:
        reader.take(await anext(lines))
        for _ in range(500):
            work.get_on()
        reader.take(await anext(lines))

    assert reader.status is not None
    assert reader.status.jobs[0].step == 500


async def test_without_a_change_there_is_a_sign_of_life():
    async with aclosing(Work().teller.lines()) as lines:
        await anext(lines)
        began_s = time.monotonic()
        assert await anext(lines) == b"{}\n"

    assert time.monotonic() - began_s >= SAID_EVERY_S - 0.01


async def test_a_node_that_leaves_says_so_and_is_heard_until_its_last_run_has_ended():
    work, reader = Work(), StateReader(max_bytes=10_000)
    phases = []
    async for line in work.teller.lines():
        reader.take(line)
        assert reader.status is not None
        phases.append((reader.status.phase, len(reader.status.jobs)))
        if len(phases) == 1:
            work.teller.leave()
        elif work.holds:
            work.holds = False
            work.teller.changed()

    assert phases == [(NodePhase.READY, 1), (NodePhase.DRAINING, 1), (NodePhase.DRAINING, 0)]
