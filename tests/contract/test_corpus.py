"""Nothing that a client sends may cost the server more than a refusal."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.contract.corpus import CORPUS, Hostile, answer_in_time
from tests.contract.programs import Server
from tests.router.conftest import USER_KEY


@pytest.mark.parametrize("hostile", CORPUS, ids=str)
def test_no_body_costs_more_than_a_refusal(client: httpx.Client, hostile: Hostile):
    reply = answer_in_time(client, hostile)

    assert reply.status_code == hostile.status, reply.text[:500]
    assert reply.headers["x-request-id"]
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 0 < len(error["message"]) < 1000


def memory_kb(pid: int, line: str) -> int:
    """VmRSS or VmHWM of a process: its resident set now, or the largest it had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(each for each in status.splitlines() if each.startswith(line)).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_of_them_together_cost_less_than_a_hundred_megabytes(server: Server, client: httpx.Client):
    before_kb = memory_kb(server.pid, "VmRSS")
    # "5" resets the largest resident set (proc(5)).
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")

    for hostile in CORPUS:
        answer_in_time(client, hostile)

    assert memory_kb(server.pid, "VmHWM") - before_kb < 100_000


@pytest.mark.parametrize("chunk_bytes", [500, 65_536])
def test_a_body_without_a_length_is_bounded_just_the_same(server: Server, chunk_bytes: int):
    """JavaScript's SDK sends its forms so. What it is told must arrive before the connection ends."""
    body = b'{"prompt": "' + b"x" * 1_100_000 + b'"}'
    pieces = (body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes))

    reply = httpx.post(
        f"{server.url}/v1/images/generations", content=pieces, headers={"authorization": f"Bearer {USER_KEY}"}, timeout=30
    )

    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
