"""Runs that are ended from outside their request."""

import asyncio

import pytest

from common.errors import RunCancelled
from router.carried import Carried


class Run:
    """One that is dispatched until it is ended."""

    def __init__(self) -> None:
        self.carried = Carried()
        self.begun, self.ended, self.told = asyncio.Event(), False, False

    async def work(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True

    async def request(self) -> None:
        try:
            await self.carried.carry("run", self.work())
        except RunCancelled:
            # Whoever was withdrawn goes on: to write it down, and to tell its client.
            await asyncio.sleep(0)
            self.told = True
            raise


async def test_one_that_is_withdrawn_has_ended_and_its_request_goes_on():
    run = Run()
    request = asyncio.ensure_future(run.request())
    await run.begun.wait()

    assert run.carried.withdraw("run")
    assert run.carried.withdraw("run")

    with pytest.raises(RunCancelled):
        await request
    assert run.ended
    assert run.told
    assert not run.carried.withdraw("run")


async def test_whoever_cancels_the_request_meanwhile_is_obeyed():
    run = Run()
    request = asyncio.ensure_future(run.request())
    await run.begun.wait()

    run.carried.withdraw("run")
    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert run.ended


async def test_a_request_that_is_cancelled_is_not_taken_for_one_that_is_withdrawn():
    run = Run()
    request = asyncio.ensure_future(run.request())
    await run.begun.wait()

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert run.ended
    assert not run.carried.withdraw("run")
