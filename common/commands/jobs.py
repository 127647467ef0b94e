"""`aquatint jobs`: long jobs of a router, such as retention, sweeps and backups."""

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show, when

if TYPE_CHECKING:
    from common.api_client import ApiClient

app = typer.Typer(no_args_is_help=True, help="Long jobs: start, list, show, watch, cancel. They outlive the router.")
COLUMNS = {
    "job": "id",
    "kind": "kind",
    "state": "state",
    "progress": "told_progress",
    "created": "told_created",
    "took": "took",
    "result": "result",
}
ENDED = ("succeeded", "failed", "cancelled")
PATIENCE_S = 120.0
"""A router that is started anew is waited for as long."""
AGAIN_AFTER_S = 1.0


@app.command("start")
def start(
    kind: Annotated[str, typer.Argument(help="Such as retention, sweep or backup; another word, and the router names all.")],
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="What the kind asks for. May be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end, as `watch` does.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Start a job: `aquatint jobs start retention --set older_than_days=90`."""
    from common.api_client import ApiClient

    client = ApiClient(url, key)
    params = dict(map(_param, given or ()))
    job = client.call("POST", "/v1/jobs", body={"kind": kind, "params": params})
    if wait:
        _watch(client, job["id"], as_json=as_json)
    else:
        _show([job], as_json)


@app.command("list")
def list_jobs(
    kind: Annotated[str | None, typer.Option(help="Of this kind alone.")] = None,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="As many of the newest.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show jobs, the newest first."""
    from urllib.parse import urlencode

    from common.api_client import ApiClient

    asked = {"kind": kind, "state": state, "limit": limit}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    _show(ApiClient(url, key).call("GET", f"/v1/jobs?{query}")["data"], as_json)


@app.command("show")
def show_job(job: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Show one job with all that came of it."""
    from common.api_client import ApiClient

    found = ApiClient(url, key).call("GET", f"/v1/jobs/{job}")
    _show([found], as_json)
    if not as_json and found["error"]:
        typer.secho(f"{found['error']['message']} ({found['error']['code']})", fg="red")


@app.command("watch")
def watch(job: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Follow a job to its end, whatever becomes of the router meanwhile. Exit code 1 unless it succeeded."""
    from common.api_client import ApiClient

    _watch(ApiClient(url, key), job, as_json=as_json)


@app.command("cancel")
def cancel(job: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Have a job end: at once while nobody has begun with it, else between two of its steps. What it did stays done."""
    from common.api_client import ApiClient

    _show([ApiClient(url, key).call("DELETE", f"/v1/jobs/{job}")], as_json)


def _watch(client: "ApiClient", job: str, *, as_json: bool) -> None:
    state = ""
    for event in _events(client, job):
        if as_json:
            typer.echo(json.dumps(event, ensure_ascii=False))
        elif event["event"] == "progress":
            typer.echo(_progress(event))
        else:
            again = f", for the {event['executions']}. time" if event["executions"] > 1 else ""
            typer.echo(event["state"] + again)
        state = event.get("state", state)
    if not as_json:
        show_job(job, as_json=False, url=client.url, key=client.key)
    if state != "succeeded":
        raise typer.Exit(1)


def _events(client: "ApiClient", job: str) -> Iterator[dict[str, Any]]:
    """What happens to a job until it has ended, each once. Raises: ApiError: no router answers for long."""
    from common.api_client import ApiError

    last, until_s = 0, time.monotonic() + PATIENCE_S
    while True:
        try:
            for number, name, data in client.events(f"/v1/jobs/{job}/events", after=last):
                last, until_s = number, time.monotonic() + PATIENCE_S
                yield {"id": number, "event": name} | data
                if data.get("state") in ENDED:
                    return
        except ApiError:
            # Refused at the very beginning, there is nothing to wait for.
            if last == 0 or time.monotonic() > until_s:
                raise
        time.sleep(AGAIN_AFTER_S)


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _show(jobs: list[dict[str, Any]], as_json: bool) -> None:
    show(jobs if as_json else list(map(_row, jobs)), COLUMNS, as_json=as_json, empty="There are no jobs.")


def _row(job: dict[str, Any]) -> dict[str, Any]:
    summary = job["summary"]
    return job | {
        "state": "cancelling" if job["cancelling"] else job["state"],
        "told_progress": _progress(job["progress"]),
        "told_created": when(job["created"]),
        "took": summary and f"{summary['seconds']:g} s",
        "result": summary and [f"{name} {value}" for name, value in summary["result"].items()],
    }


def _progress(told: dict[str, Any]) -> str:
    total = "" if told["total"] is None else f" of {told['total']:,}"
    return f"{told['done']:,}{total} {told['unit'] or ''}".rstrip()
