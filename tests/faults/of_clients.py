"""Clients that leave, half close, reset, and never read."""

import asyncio
import json
import socket
import struct

from tests.fakes.node import MODEL
from tests.faults.campaign import Fault, Scene
from tests.faults.estate import HEADERS, NODES, ROUTERS, WORK_S, until
from tests.faults.load import Asked

LEAVING = 12
LONG_S = 20.0
"""What a run takes that nobody may wait for: far longer than the fault."""
RUDE = 4


async def leave(scene: Scene) -> None:
    """F26: half of the clients go at a random step, some of them without a word; nodes stop, and what waits never begins."""
    estate, load = scene.estate, scene.load
    await load.pause()
    scene.strikes()
    for name in NODES:
        await estate.tell_node(name, seconds=LONG_S)
    leaving = [
        Asked(f"{load.name} gone {number}", number, 1, number % ROUTERS, leaves_after_s=scene.rng.uniform(0.3, 1.5))
        for number in range(round(LEAVING * scene.longer))
    ]
    tasks = [load.send(asked) for asked in leaving]
    rude = [await _rude(scene, number) for number in range(RUDE)]
    await asyncio.gather(*tasks)
    for connection in rude:
        connection.close()

    def free() -> bool:
        ours = [each for each in estate.events() if each["at_s"] >= scene.struck_s]
        done = {(each["run_id"], each["attempt"]) for each in ours if each["event"] in ("left", "stored")}
        return all((each["run_id"], each["attempt"]) in done for each in ours if each["event"] == "begun")

    took_s = await until(free, what="every node to be free")
    if took_s > LONG_S / 2:
        scene.found.hold("I8", f"nodes worked on for {took_s:.1f} s")
    for name in NODES:
        await estate.tell_node(name, seconds=WORK_S)
    load.resume()
    scene.over()


async def _rude(scene: Scene, number: int) -> socket.socket:
    """A client that asks and reads nothing; when it is closed it resets (an even number) or was half closed before."""
    body = json.dumps({"prompt": f"{scene.load.name} rude {number}", "model": MODEL, "size": "64x64"}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: {HEADERS['authorization']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", scene.estate.router_ports[number % ROUTERS]))
    connection.sendall(head.encode() + body)
    if number % 2:
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection


FAULTS = [Fault(code="F26", title="clients leave", strike=leave, kinds=("sqlite",))]
