"""`aquatint bench node`: what a whole node costs over the bare pipeline, both measured in turns in one call.

The node is a real process: HTTP, queue, worker, catalog, asset store. The bare pipeline is what a script of ten lines
does: the same checkpoint through diffusers in this process, the same sampler, size, steps and seed, and the same PNG
encoder. Turns make a busy machine slow both alike; what is compared is the median of each.
"""

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from node.models import Model

BATCHES = (1, 2, 4, 8)
READY_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Work:
    """One picture, as both sides make it."""

    prompt: str
    width_px: int
    height_px: int
    steps: int
    guidance: float


def node(
    models: Annotated[
        list[Path] | None, typer.Option(help="Folder with checkpoints; the demonstration model if absent.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model; the first by name when absent.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the model's own when absent.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the model's own when absent.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Pictures of each kind.")] = 10,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients of the throughput figure.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of both sides.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure a node against the bare diffusers pipeline of the same checkpoint."""
    from common.images_api import Size
    from node.engine_names import EngineName
    from node.models import find_models

    found = find_models(list(models or []), engines={EngineName.DIFFUSERS})
    chosen = found.get(model) if model else found.default
    if chosen is None:
        raise typer.BadParameter(f"no model {model!r} in {', '.join(found.by_name)}", param_hint="--model")
    wanted = Size.parse(size) if size else chosen.profile.default_size
    work = Work(
        "a large red circle on the left, on a blue background",
        wanted.width_px,
        wanted.height_px,
        steps or chosen.profile.default_steps,
        chosen.profile.default_guidance,
    )
    figures = measure(chosen, list(models or []), work, count=count, clients=clients, device=device, threads=threads)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        rows = [{"figure": name, "value": value} for name, value in figures.items()]
        show(rows, {"figure": "figure", "value": "value"}, as_json=False, empty="")


def measure(
    model: "Model", models: list[Path], work: Work, *, count: int, clients: int, device: str, threads: int
) -> dict[str, Any]:
    """Every figure, times in seconds. `overhead_ratio`: whole node / bare pipeline, of the medians over `count` turns."""
    import torch

    from node.engine_names import EngineName
    from node.worker.device import choose_device

    torch.set_num_threads(threads)
    kind = choose_device(device, EngineName.DIFFUSERS)
    bare = _bare(model, work, kind)
    with _node_process(models, kind, threads) as (ask, pid):
        first = ask(_body(model, work, seed=0))
        bare(1, 0)
        sides: dict[str, list[float]] = {"node": [], "bare": []}
        denoise: list[float] = []
        for turn in range(count):
            began = time.perf_counter()
            answer = ask(_body(model, work, seed=turn))
            sides["node"].append(time.perf_counter() - began)
            denoise.append(answer["timings"]["denoise"])
            began = time.perf_counter()
            bare(1, turn)
            sides["bare"].append(time.perf_counter() - began)
        node_s, bare_s = (statistics.median(sides[side]) for side in ("node", "bare"))
        together_s = _together(ask, model, work, count=max(count, clients), clients=clients)
        curve = _batch_curve(bare)
        return {
            "model": model.name,
            "device": kind,
            "size": f"{work.width_px}x{work.height_px}",
            "steps": work.steps,
            "node_s": round(node_s, 4),
            "bare_s": round(bare_s, 4),
            "overhead_ratio": round(node_s / bare_s, 4),
            "overhead_ms": round(1000 * (node_s - bare_s), 1),
            "step_s": round(statistics.median(denoise) / work.steps, 5),
            "load_s": first["timings"]["load"],
            "images_per_s_of_bare": round(1 / bare_s, 3),
            f"images_per_s_of_{clients}_clients": round(1 / together_s, 3),
            "throughput_ratio": round(bare_s / together_s, 4),
            "batch_curve_s_per_image": curve,
            "worker_peak_bytes": _peak_bytes(pid),
        }


def _body(model: "Model", work: Work, seed: int) -> dict[str, Any]:
    return {
        "model": model.name,
        "prompt": work.prompt,
        "width": work.width_px,
        "height": work.height_px,
        "num_inference_steps": work.steps,
        "guidance_scale": work.guidance,
        "sampler": "checkpoint",
        "seed": seed,
    }


def _bare(model: "Model", work: Work, kind: str) -> Callable[[int, int], list[bytes]]:
    """A call that paints `batch` pictures from a seed on and encodes them as PNG."""
    import diffusers
    import torch
    import transformers

    from common.images_api import OutputFormat
    from common.pictures import encode

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
        model.checkpoint.path,
        dtype=getattr(torch, model.dtype(kind, "auto")),
        use_safetensors=True,
        local_files_only=True,
        variant=model.checkpoint.variant,
    ).to(kind)
    pipeline.set_progress_bar_config(disable=True)

    def paint(batch: int, seed: int) -> list[bytes]:
        pictures = pipeline(
            [work.prompt] * batch,
            width=work.width_px,
            height=work.height_px,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            generator=[torch.Generator().manual_seed(seed + number) for number in range(batch)],
        ).images
        return [encode(picture, output_format=OutputFormat.PNG) for picture in pictures]

    return paint


def _batch_curve(bare: Callable[[int, int], list[bytes]]) -> dict[int, float]:
    """Seconds a picture by batch size: what batching would pay on this device."""
    curve = {}
    for batch in BATCHES:
        bare(batch, 0)
        began = time.perf_counter()
        bare(batch, 0)
        curve[batch] = round((time.perf_counter() - began) / batch, 4)
    return curve


def _together(
    ask: Callable[[dict[str, Any]], dict[str, Any]], model: "Model", work: Work, *, count: int, clients: int
) -> float:
    """Seconds a picture while `clients` ask at the same time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, (_body(model, work, seed) for seed in range(count))))
    return (time.perf_counter() - began) / count


@contextmanager
def _node_process(
    models: list[Path], kind: str, threads: int
) -> Iterator[tuple[Callable[[dict[str, Any]], dict[str, Any]], int]]:
    """A node of its own home: a function that sends a generation and returns the answer, and the node's process id."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory() as home,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {token}"}, timeout=3600, trust_env=False
        ) as client,
        (Path(home) / "node.log").open("wb") as log,
    ):
        settings = {"AQUATINT_HOME": home, "AQUATINT__NODE__TOKEN": token, "AQUATINT__NODE__THREADS": str(threads)}
        folders = [part for folder in models for part in ("--models", str(folder.resolve()))]
        with subprocess.Popen(
            [sys.executable, "-m", "node", "--port", str(port), "--device", kind, *folders],
            env=os.environ | settings,
            stdout=log,
            stderr=log,
        ) as process:
            try:
                _wait_ready(client, process, Path(log.name))
                yield lambda body: _sent(client, body), process.pid
            finally:
                process.terminate()


def _wait_ready(client: Any, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import httpx

    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise typer.BadParameter(f"the node did not start; its log ends:\n{log.read_text(errors='replace')[-2000:]}")


def _sent(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    from common.api_client import ApiError

    while True:
        answer = client.post("/v1/images/generations", json=body)
        if answer.status_code == 429:  # More clients than the node's queue has places.
            time.sleep(0.05)
            continue
        if answer.status_code != 200:
            raise ApiError(f"The node answered {answer.status_code}: {answer.text[:500]}")
        told: dict[str, Any] = answer.json()
        return told


def _peak_bytes(pid: int) -> int | None:
    """The largest resident set among the node's children, which is its worker's; None where there is no /proc."""
    peaks = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            peaks += [1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks, default=None)
