"""`aquatint generate`: one prompt, one file."""

import base64
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import KeyOption, UrlOption

if TYPE_CHECKING:
    from common.api_client import ApiClient

POLL_S = 0.25


def generate(
    prompt: str,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: .png, .jpg or .webp.")] = Path("out.png"),
    model: Annotated[str | None, typer.Option(help="Model; the server's default when absent.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many pictures; file names are numbered.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture must not show.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a picture and write it to a file."""
    from common.api_client import ApiClient

    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if out.suffix.lower() not in formats:
        raise typer.BadParameter("the file must end in .png, .jpg or .webp", param_hint="--out")
    body = {
        "prompt": prompt,
        "model": model,
        "size": size,
        "n": n,
        "seed": seed,
        "num_inference_steps": steps,
        "negative_prompt": negative,
        "output_format": formats[out.suffix.lower()],
        "response_format": "b64_json",
    }
    request_id = f"cli-{secrets.token_hex(16)}"
    began_s = time.monotonic()
    client = ApiClient(url, key)
    watcher = ApiClient(url, key)

    def send() -> Any:
        sent = {name: value for name, value in body.items() if value is not None}
        return client.call("POST", "/v1/images/generations", body=sent, headers={"x-request-id": request_id})

    answer = send() if quiet else _with_progress(send, lambda: _progress(watcher, request_id))
    for index, item in enumerate(answer["data"]):
        path = out if n == 1 else out.with_stem(f"{out.stem}-{index + 1}")
        path.write_bytes(base64.b64decode(item["b64_json"]))
        typer.echo(f"{path}  {answer.get('size')}  seed {item.get('seed')}  {time.monotonic() - began_s:.1f} s")


def _with_progress(send: Callable[[], Any], look: Callable[[], dict[str, Any]]) -> Any:
    """Run `send` in a thread and show on stderr how far the run is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    result: dict[str, Any] = {}
    ended = threading.Event()

    def work() -> None:
        try:
            result["answer"] = send()
        except Exception as error:
            result["error"] = error
        finally:
            ended.set()

    threading.Thread(target=work, daemon=True).start()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sending", total=1)
        while not ended.wait(POLL_S):
            progress.update(bar, **look())
    if "error" in result:
        raise result["error"]
    return result["answer"]


def _progress(client: "ApiClient", request_id: str) -> dict[str, Any]:
    """How far the run of this request is, as the progress bar takes it."""
    from common.api_client import ApiError

    try:
        found = client.call("GET", f"/v1/runs?request_id={request_id}")["data"]
    except ApiError:
        return {}
    if not found:
        return {}
    run = found[0]
    eta = f", {run['eta_s']:.0f} s left" if run.get("eta_s") else ""
    if run["phase"] == "queued":
        return {"description": f"queued, place {run.get('position', '?')}{eta}"}
    return {"description": f"{run['phase']}{eta}", "completed": run.get("step", 0), "total": run.get("steps") or 1}
