"""`aquatint top`: the fleet live in a terminal."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption

if TYPE_CHECKING:
    from rich.console import RenderableType

    from common.api_client import ApiClient

ENDED = ("succeeded", "cached", "refused", "failed", "cancelled")
BAR_WIDTH = 12
STATE_STYLES = {"online": "green", "draining": "yellow", "pending": "yellow", "error": "red", "offline": "red"}


@dataclass(frozen=True, slots=True)
class Look:
    """The fleet at one moment."""

    at_s: float
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """As GET /admin/nodes tells of them."""
    waiting: int = 0
    predicted_s: float = 0.0
    """Until a run accepted now would get its place."""
    ended: dict[str, float] = field(default_factory=dict)
    """Runs by how they ended, since the router started."""

    def per_minute(self, before: "Look | None") -> float:
        """Runs that succeeded a minute, between two looks; 0 for the first, and after the router was started anew."""
        if before is None or self.at_s <= before.at_s:
            return 0.0
        more = self.ended.get("succeeded", 0.0) - before.ended.get("succeeded", 0.0)
        return max(0.0, more) * 60 / (self.at_s - before.at_s)


def top(
    interval_s: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, printed; no live view.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Watch nodes, the queue and what is being made, until Ctrl-C. Needs an administrator's key."""
    from rich.console import Console

    from common.api_client import ApiClient

    client = ApiClient(url, key)
    if as_json:
        typer.echo(json.dumps(asdict(look(client)), ensure_ascii=False))
    elif once:
        Console().print(frame(look(client), None))
    else:
        _watch(client, interval_s)


def _watch(client: "ApiClient", interval_s: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from common.api_client import ApiError

    # A wrong key or address is said at once, and not in a view that comes and goes.
    now, before = look(client), None
    try:
        with Live(frame(now, before), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                try:
                    now, before = look(client), now
                    live.update(frame(now, before), refresh=True)
                except ApiError as error:
                    live.update(Text(f"{error}\nTrying again ...", style="red"), refresh=True)
    except KeyboardInterrupt:
        return


def look(client: "ApiClient") -> Look:
    """Raises: ApiError."""
    nodes = client.call("GET", "/admin/nodes")["data"]
    from prometheus_client.parser import text_string_to_metric_families

    waiting, predicted_s, ended = 0, 0.0, dict.fromkeys(ENDED, 0.0)
    for family in text_string_to_metric_families(client.text("/metrics")):
        for sample in family.samples:
            if sample.name == "aquatint_queue_depth":
                waiting = int(sample.value)
            elif sample.name == "aquatint_queue_predicted_seconds":
                predicted_s = sample.value
            elif sample.name == "aquatint_runs_total":
                outcome = sample.labels["outcome"]
                ended[outcome] = ended.get(outcome, 0.0) + sample.value
    return Look(time.time(), nodes, waiting, predicted_s, ended)


def frame(now: Look, before: Look | None) -> "RenderableType":
    """One view of the fleet."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    online = sum(node["state"] == "online" for node in now.nodes)
    head = (
        f"{online} of {len(now.nodes)} nodes online   {now.waiting} waiting, {now.predicted_s:.0f} s predicted   "
        f"{now.per_minute(before):.0f} runs a minute   "
        + "   ".join(f"{now.ended[outcome]:.0f} {outcome}" for outcome in ENDED if now.ended.get(outcome))
    )
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in ("node", "state", "device", "memory", "loaded", "making"):
        table.add_column(heading)
    for node in now.nodes:
        state = node["state"]
        cells = (escape(node["name"]), f"[{STATE_STYLES.get(state, 'white')}]{escape(state)}[/]", *map(escape, _cells(node)))
        table.add_row(*cells)
    return Group(Text(head, style="bold"), Text(), table)


def _cells(node: dict[str, Any]) -> tuple[str, str, str, str]:
    device = node["device"]
    if device is None:
        return "-", "-", "-", node["error"] or "-"
    total, free = device["memory_total_bytes"], device["memory_free_bytes"]
    memory = f"{_bar(1 - free / total)} {(total - free) / 1e9:.1f}/{total / 1e9:.0f} GB" if total else "-"
    loaded = ", ".join(model["id"] for model in node["models"] if model["resident"]) or "-"
    return f"{device['kind']} ({device['name']})", memory, loaded, _making(node["jobs"]) or node["error"] or "idle"


def _making(jobs: Iterable[dict[str, Any]]) -> str:
    held = list(jobs)
    shown = [
        f"{job['model']} {_bar(job['step'] / job['steps'])} {job['step']}/{job['steps']}"
        if job["phase"] == "running" and job["steps"]
        else f"{job['model']} {job['phase']}"
        for job in held
        if job["phase"] != "queued"
    ]
    queued = sum(job["phase"] == "queued" for job in held)
    return ", ".join(shown + ([f"+{queued} queued"] if queued else []))


def _bar(share: float) -> str:
    full = round(max(0.0, min(1.0, share)) * BAR_WIDTH)
    return "█" * full + "░" * (BAR_WIDTH - full)
