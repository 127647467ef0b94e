"""`aquatint bench placement --processes`: a real router before real processes that take their time, measured against the ideal.

Three nodes of speed 1, 2 and 4. First a few runs, so that the router has seen what work costs; then
- many runs at once: the time until all are done over that of a fleet which never idles, and of how many the time told once
  all of them are there is within 20 % of the time it took (before, short ones still overtake: `x-eta-s` cannot know of them);
- arrivals by chance at a load of 0.7, of a model that fits, then of two of which one fits a node: of how many the time told
  when they came is within 20 % of the time it took;
- one key that offers a hundred times as much as each of four others: Jain's index of the device seconds that they got.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx

from common.dialling import trusted
from common.ports import hold_port
from common.web.connections import allow_open_files
from router.bench.paced_node import MODELS, PICTURE_S, STEP_S
from router.bench.processes import process
from router.bench.targets import KEY, answers, aquatint, wait_until

SPEEDS = (1.0, 2.0, 4.0)
STEPS = (5, 10, 20, 40)
"""Of pictures of one megapixel: half a second to four on a node of speed 1."""
AT_ONCE = 80
LOOK_EVERY_S = 0.5
ARRIVALS = 120
LOAD = 0.7
WITHIN = 0.2
"""Of the time it took: how far off what was told may be."""
MODEST = 40
"""Runs that each of four keys asks for: enough for the rounds of fairness (`line.ROUND_S`) to weigh little beside them."""
GREEDY = 100 * MODEST
AT_NODES = 2 * len(SPEEDS)
"""Runs that nodes hold: one each that runs, and one behind it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One that was answered. Seconds; work_s: on a node of speed 1."""

    run_id: str
    key: str
    work_s: float
    took_s: float
    eta_s: float
    done_at_s: float


def work_s(steps: int) -> float:
    """Of one picture, on a node of speed 1."""
    return steps * STEP_S + PICTURE_S


@contextmanager
def nodes(work: Path, fits: int) -> Iterator[list[int]]:
    """One node of each speed; their ports."""
    with ExitStack() as stack:
        ports = []
        for speed in SPEEDS:
            port = hold_port()
            arguments = [sys.executable, "-m", "router.bench.paced_node", "--port", str(port)]
            log = work / f"node-{port}.log"
            stack.enter_context(process([*arguments, "--speed", str(speed), "--fits", str(fits)], core=None, log=log))
            wait_until(partial(answers, port, "/node/v1/status"), "a paced node", log)
            ports.append(port)
        yield ports


def measure_processes() -> dict[str, Any]:
    """All figures, of one router a phase: what was learned in one is not known in the next."""
    allow_open_files()
    return {
        "at_once": _phase(1, at_once),
        "arrivals": _phase(1, partial(arrivals, others=0.0)),
        "arrivals, two models": _phase(1, partial(arrivals, others=0.1), fits=1),
        "keys": _phase(5, keys),
    }


def _phase(keys_count: int, phase: Any, *, fits: int = len(MODELS)) -> dict[str, Any]:
    from common.catalog import migrate, sqlite_url

    with tempfile.TemporaryDirectory(prefix="aquatint-bench-") as folder, ExitStack() as stack:
        work = Path(folder)
        (work / "aquatint").mkdir()
        asyncio.run(migrate(sqlite_url(work / "aquatint" / "catalog.db")))
        ports = stack.enter_context(nodes(work, fits))
        environment = {"AQUATINT__ROUTER__MAX_QUEUED": str(2 * GREEDY), "AQUATINT__ROUTER__MAX_WAIT_S": "3600"}
        router = stack.enter_context(aquatint(work, ports, core=None, environment=environment))
        told: dict[str, Any] = asyncio.run(_with_client(router.port, phase, keys_count))
        return told


async def _with_client(port: int, phase: Any, keys_count: int) -> dict[str, Any]:
    async with _client(f"http://127.0.0.1:{port}") as client:
        secrets = [KEY, *[await _new_key(client, f"bench-{number}") for number in range(1, keys_count)]]
        for model in MODELS:
            # Two of each size for each node: the first pays for what is new.
            await asyncio.gather(*(send(client, KEY, steps, model) for steps in STEPS for _ in range(2 * len(SPEEDS))))
        told: dict[str, Any] = await phase(client, secrets)
        return told


def _client(base_url: str) -> httpx.AsyncClient:
    # Shorter than the router keeps them: or one is used in the moment it is closed.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    return httpx.AsyncClient(base_url=base_url, limits=limits, timeout=600, trust_env=False, verify=trusted())


async def _new_key(client: httpx.AsyncClient, name: str) -> str:
    made = await client.post("/admin/keys", json={"name": name}, headers={"authorization": f"Bearer {KEY}"})
    made.raise_for_status()
    return str(made.json()["key"])


async def send(client: httpx.AsyncClient, key: str, steps: int, model: str) -> Run:
    """One request, to its answer."""
    began_s = time.monotonic()
    body = {"prompt": "x", "model": model, "size": "1000x1000", "num_inference_steps": steps}
    reply = await client.post("/v1/images/generations", json=body, headers={"authorization": f"Bearer {key}"})
    reply.raise_for_status()
    now_s = time.monotonic()
    return Run(reply.headers["x-run-id"], key, work_s(steps), now_s - began_s, float(reply.headers["x-eta-s"]), now_s)


async def at_once(client: httpx.AsyncClient, secrets: Sequence[str]) -> dict[str, Any]:
    """Many runs at once."""
    drawn, began_s = Random(1), time.monotonic()
    sent = [asyncio.ensure_future(send(client, KEY, drawn.choice(STEPS), MODELS[0])) for _ in range(AT_ONCE)]
    told_s: dict[str, float] = {}
    while len(told_s) + sum(each.done() for each in sent) < AT_ONCE:
        await asyncio.sleep(LOOK_EVERY_S)
        reply = await client.get("/v1/runs", headers={"authorization": f"Bearer {KEY}"})
        looked_s = time.monotonic()
        told_s = {run["id"]: run["eta_s"] for run in reply.json()["data"] if "eta_s" in run}
    runs = await asyncio.gather(*sent)
    makespan_s = time.monotonic() - began_s
    ideal_s = sum(run.work_s for run in runs) / sum(SPEEDS)
    told = {"makespan_s": round(makespan_s, 2), "ideal_s": round(ideal_s, 2), "to_ideal": round(makespan_s / ideal_s, 3)}
    # A second less or more is all that can be said of what is about to end.
    later = [run for run in runs if told_s.get(run.run_id, 0.0) >= 1.0]
    return told | _foreseen([(run.done_at_s - looked_s) / told_s[run.run_id] for run in later])


async def arrivals(client: httpx.AsyncClient, secrets: Sequence[str], *, others: float) -> dict[str, Any]:
    """By chance, at a load of `LOAD`. others: share of those for the second model."""
    drawn = Random(2)
    asked = [(drawn.choice(STEPS), MODELS[drawn.random() < others]) for _ in range(ARRIVALS)]
    apart_s = sum(work_s(steps) for steps, _ in asked) / ARRIVALS / sum(SPEEDS) / LOAD
    sent = []
    for steps, model in asked:
        sent.append(asyncio.ensure_future(send(client, KEY, steps, model)))
        await asyncio.sleep(drawn.expovariate(1 / apart_s))
    runs = await asyncio.gather(*sent)
    told = {"mean_s": round(sum(run.took_s for run in runs) / len(runs), 2)}
    return told | _foreseen([run.took_s / run.eta_s for run in runs])


async def keys(client: httpx.AsyncClient, secrets: Sequence[str]) -> dict[str, Any]:
    """Device seconds that each key got while all of them had runs in line."""
    greedy, *modest = secrets
    async with AsyncExitStack() as stack:
        # A client looks through all its connections at each request.
        many = [await stack.enter_async_context(_client(str(client.base_url))) for _ in range(GREEDY // MODEST)]
        sent = {greedy: [_sent(each, greedy) for each in many for _ in range(MODEST)]}
        await _in_line(client, sent[greedy])
        sent |= {key: [_sent(client, key) for _ in range(MODEST)] for key in modest}
        await _in_line(client, [each for key in secrets for each in sent[key]])
        began_s = time.monotonic()
        await asyncio.gather(*(each for key in modest for each in sent[key]))
        for each in sent[greedy]:
            each.cancel()
        await asyncio.wait(sent[greedy])
    ended = {key: [each.result() for each in sent[key] if not each.cancelled()] for key in secrets}
    offered = {key: len(each) for key, each in sent.items()}
    got_s = list(shares_s(ended, offered, began_s).values())
    told_s = [round(seconds, 1) for seconds in got_s]
    return {"jain": round(jain(got_s), 3), "device_s": told_s, "offered_runs": list(offered.values())}


def _sent(client: httpx.AsyncClient, key: str) -> asyncio.Future[Run]:
    return asyncio.ensure_future(send(client, key, 10, MODELS[0]))


async def _in_line(client: httpx.AsyncClient, sent: Sequence[asyncio.Future[Run]]) -> None:
    """Wait until all that are not answered are in the router's line or at a node."""
    queued = 0
    while queued < sum(not each.done() for each in sent) - AT_NODES:
        await asyncio.sleep(LOOK_EVERY_S)
        queued = (await client.get("/ready")).json()["queued"]


def shares_s(ended: Mapping[str, Sequence[Run]], offered: Mapping[str, int], began_s: float) -> dict[str, float]:
    """Device seconds that each key got as long as each surely had a run in line: from `began_s`, when all were sent, until
    the first had no more unanswered than nodes may hold. By key, as `ended`; offered: runs sent."""
    surely = {key: most - AT_NODES for key, most in offered.items()}
    until_s = min(
        sorted(run.done_at_s for run in ended[key])[surely[key] - 1] for key in ended if len(ended[key]) >= surely[key]
    )
    return {key: sum(run.work_s for run in runs if began_s < run.done_at_s <= until_s) for key, runs in ended.items()}


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all got the same, 1/n where one got all."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def _foreseen(ratios: Sequence[float]) -> dict[str, Any]:
    """ratios: of seconds taken to seconds told."""
    ordered, within = sorted(ratios), sum(abs(1 / ratio - 1) <= WITHIN for ratio in ratios) / len(ratios)
    spread = {f"p{share}": round(ordered[share * len(ordered) // 100], 2) for share in (10, 50, 90)}
    return {"runs": len(ratios), "within_20_percent": round(within, 3), "taken_to_told": spread}
