"""`aquatint bench gpu`: full-size SDXL and Z-Image-Turbo of random weights, measured at 1024x1024, without a network.

For each kind of work: the node beside the bare pipeline in turns, many clients, batches, cancelling, memory beside what the
node estimates, presets, and the same again with compiled blocks. Published figures stand beside, with their source: they
were measured on other machines, by others, and compare only roughly.
"""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from node.benches.bare import Work
    from node.benches.random_checkpoints import Build, Scale
    from node.models import Model

TINY_PX = 64
COMPILED_WITHIN_S = 900.0


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work, and what others published of it at 1024x1024."""

    name: str
    steps: int
    guidance: float
    sampler: str
    published: tuple[str, ...]


JOBS: dict[str, tuple[Job, ...]] = {
    "sdxl": (
        Job(
            "SDXL, 30 steps",
            30,
            6.0,
            "euler",
            (
                "2.50 s a picture by diffusers, 1.47 s by TensorRT, one H100 (model card of Stability's SDXL for TensorRT)",
                "2.17 images/s at 20 steps, an eighth of eight H200 (MLPerf Inference v4.1, closed, GigaComputing)",
            ),
        ),
        Job(
            "SDXL, LCM, 4 steps",
            4,
            1.0,
            "lcm",
            (
                "0.234 s a picture by TensorRT, one H100 (model card of Stability's SDXL for TensorRT)",
                "10.79 images/s, one H200 (MLPerf Inference v4.1, open, NVIDIA)",
            ),
        ),
    ),
    "z-image": (
        Job(
            "Z-Image-Turbo, 8 forward passes",
            8,
            0.0,
            "checkpoint",
            ("0.906 s a picture of 9 steps, one H100 (sglang, perf_baselines/h100.json)",),
        ),
    ),
}


def gpu(
    build: Annotated[list[str] | None, typer.Option(help="sdxl, z-image; both when absent. May be repeated.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the checkpoints are built and found again; up to 30 GB. Thrown away if absent.")
    ] = None,
    scale: Annotated[str, typer.Option(help="full, or tiny: shows on any machine that the measuring works.")] = "full",
    count: Annotated[int, typer.Option(min=2, help="Pictures of each kind.")] = 5,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients of the throughput figure.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of both sides.")] = 4,
    compiled: Annotated[bool, typer.Option(help="Measure once more with compiled blocks.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Build checkpoints of random weights and measure a node on them."""
    from node.benches.random_checkpoints import Build, Scale

    try:
        builds, size = [Build(each) for each in build or list(Build)], Scale(scale)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with tempfile.TemporaryDirectory() as own:
        figures = [
            figure
            for each in builds
            for figure in measure(
                each, size, folder or Path(own), count=count, clients=clients, device=device, threads=threads, compiled=compiled
            )
        ]
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    rows = [{"work": each["work"], "figure": name, "value": value} for each in figures for name, value in each.items()]
    show(rows, {name: name for name in ("work", "figure", "value")}, as_json=False, empty="")


def measure(
    build: "Build",
    scale: "Scale",
    folder: Path,
    *,
    count: int,
    clients: int,
    device: str,
    threads: int,
    compiled: bool,
) -> list[dict[str, Any]]:
    """The figures of each kind of work with one checkpoint, built in `folder` unless it is there."""
    import torch

    from node.benches.bare import Bare, Work
    from node.benches.figures import timed
    from node.benches.process import running_node
    from node.benches.random_checkpoints import Scale, write
    from node.engine_names import EngineName
    from node.models import find_models
    from node.worker.device import choose_device

    torch.set_num_threads(threads)
    kind = choose_device(device, EngineName.DIFFUSERS)
    root = folder / f"{build}-{scale}"
    dtype = "float32" if kind == "cpu" else {"sdxl": "float16", "z-image": "bfloat16"}[build]
    built_s = 0.0
    if not (root / build / "model_index.json").exists():
        built_s = timed(lambda: write(build, scale, root / build, dtype=dtype, device=kind))
    model = find_models([root], engines={EngineName.DIFFUSERS}).by_name[build]
    side_px = 1024 if scale is Scale.FULL else TINY_PX
    works = {job: Work(side_px, side_px, job.steps, job.guidance, job.sampler) for job in JOBS[build]}
    bare = Bare(model, kind)
    about = {"device": _device_name(kind), "scale": scale.value, "built_s": round(built_s, 1)}
    figures = []
    with running_node([root], kind, threads) as node:
        for job, work in works.items():
            measured = _of_one(node, bare, model, work, count=count, clients=clients, kind=kind)
            figures.append({"work": job.name, **about, **measured, "published": list(job.published)})
    if compiled:
        with running_node([root], kind, threads, {"AQUATINT__NODE__COMPILE": "auto"}) as node:
            for figure, work in zip(figures, works.values(), strict=True):
                figure["compiled"] = _compiled(node, bare, model, work, count=count)
    return figures


def _of_one(node: Any, bare: Any, model: "Model", work: "Work", *, count: int, clients: int, kind: str) -> dict[str, Any]:
    from node.benches.figures import PeakOnDevice, batch_curve, beside, cancel_latency_s, preset_figures, together

    with PeakOnDevice(node) as peak:
        figures = beside(node, bare, model.name, work, count=count)
        figures |= together(node, bare, model.name, work, count=max(count, clients), clients=clients)
    presets = preset_figures(node, model.name, list(model.profile.presets), work, count=count)
    return figures | {
        "batch_curve_s_per_image": batch_curve(bare, work),
        # Long enough to be met half way.
        "cancel_s": cancel_latency_s(node, model.name, replace(work, steps=min(model.profile.max_steps, 4 * work.steps))),
        # Of random weights the speed alone says something.
        "preset_speed": {name: each["speed"] for name, each in presets.items()},
        "estimated_weights_bytes": model.checkpoint.memory_bytes(model.dtype(kind, "auto")),
        "profile_min_vram_bytes": model.profile.min_vram_bytes,
        "peak_bytes": node.peak_bytes() if kind == "cpu" else peak.bytes,
    }


def _compiled(node: Any, bare: Any, model: "Model", work: "Work", *, count: int) -> dict[str, Any]:
    """Speed once the blocks are compiled, what that took, and why they are not where they are not."""
    from node.benches.figures import beside

    def state() -> str:
        told = next(each for each in node.status().models if each.id == model.name).tuning
        return str(told.get("compile", "not told"))

    began = time.monotonic()
    node.ask(work.body(model.name, 0))
    while (now := state()).startswith(("warming", "not told")) and time.monotonic() - began < COMPILED_WITHIN_S:
        time.sleep(1.0)
    warm_s = time.monotonic() - began
    figures = beside(node, bare, model.name, work, count=count)
    kept = ("node_s", "step_s", "overhead_ratio", "overhead_ratio_quartiles")
    return {"state": now, "warm_up_s": round(warm_s, 1), **{name: figures[name] for name in kept}}


def _device_name(kind: str) -> str:
    from node.worker.device import device_status

    return device_status(kind).name
