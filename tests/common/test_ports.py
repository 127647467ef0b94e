"""Ports that are kept for processes which have not started yet, or start again."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
import uvloop
from fastapi import FastAPI

from common.ports import hold_port
from tests.serving import served


def test_a_held_port_is_given_to_nobody_who_takes_any():
    number = hold_port()

    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as end, pytest.raises(OSError, match="in use"):
            end.bind((host, number))


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_servers_listen_on_a_held_port_and_again_after_they_have_ended(loop: Callable[[Coroutine[Any, Any, int]], int]):
    number = hold_port()

    async def talk() -> int:
        async with served(FastAPI(), number) as url, httpx.AsyncClient(base_url=url) as client:
            return (await client.get("/openapi.json")).status_code

    assert [loop(talk()) for _ in range(2)] == [200, 200]


def test_a_port_on_which_somebody_listens_is_not_held():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OSError, match="in use"):
        hold_port(listener.getsockname()[1])
