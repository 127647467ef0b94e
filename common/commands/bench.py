"""`aquatint bench`: measurements, each beside what it is to be compared with, in turns, in one call.

Shared machines are noisy, so a figure alone says little: the ratio of two things measured in turns says more. Packages
above this one add subcommands through the entry-point group `aquatint.bench`.
"""

import statistics
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show

GROUP = "aquatint.bench"

app = typer.Typer(no_args_is_help=True, help="Measure what a server costs.")


@app.callback()
def benches() -> None:
    """A callback keeps the subcommands' names even where there is only one."""


@app.command("stream")
def stream(
    node: Annotated[str, typer.Option(help="Address of a node behind the router.")],
    token: Annotated[str, typer.Option(help="Bearer token of that node.")],
    count: Annotated[int, typer.Option(min=2, help="Streams of each kind.")] = 20,
    model: Annotated[str | None, typer.Option(help="Model; the server's default when absent.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Time from a node's writing of the first preview to its arrival: through the router, and straight from the node.

    Router, node and this command must share a clock, so run it on one machine.
    """
    from common.api_client import ApiClient

    client = ApiClient(url, key)
    ways = {"router": (client.url, client.key), "node": (node, token)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(count + 1):
        for way, (base_url, bearer) in ways.items():
            took_s = _first_preview_s(base_url, bearer, model, number)
            if number:  # The first of each opens connections and loads the model.
                seconds[way].append(took_s)
    rows = [{"way": way, **_in_ms(times)} for way, times in seconds.items()]
    added_ms = round(rows[0]["median_ms"] - rows[1]["median_ms"], 2)
    columns = {name: name for name in ("way", "median_ms", "p95_ms", "max_ms", "streams")}
    show([*rows, {"way": "added by the router", "median_ms": added_ms}], columns, as_json=as_json, empty="")


def _first_preview_s(base_url: str, bearer: str | None, model: str | None, seed: int) -> float:
    import httpx
    import orjson

    body = {"prompt": "a large red circle", "size": "256x256", "stream": True, "partial_images": 1, "seed": seed}
    body |= {"model": model} if model else {}
    headers = {"authorization": f"Bearer {bearer}"}
    with (
        httpx.Client(base_url=base_url, headers=headers, timeout=300, trust_env=False) as client,
        client.stream("POST", "/v1/images/generations", json=body) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data:"):
                arrived_s = time.time()
                event = orjson.loads(line.removeprefix("data:"))
                if event["type"].endswith(".partial_image"):
                    return arrived_s - float(event["written_at"])
                break
        from common.api_client import ApiError

        raise ApiError(f"{base_url} answered {answer.status_code} without a preview.")


def _in_ms(seconds: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "median_ms": round(1000 * statistics.median(ordered), 2),
        "p95_ms": round(1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
        "max_ms": round(1000 * ordered[-1], 2),
        "streams": len(ordered),
    }


for _entry in entry_points(group=GROUP):
    app.command(_entry.name)(_entry.load())
