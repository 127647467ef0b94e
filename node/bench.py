"""`aquatint bench node`: what a whole node costs over the bare pipeline, both measured in turns in one call.

The node is a real process: HTTP, queue, worker, catalog, asset store. The bare pipeline is what a script of ten lines
does: the same checkpoint through diffusers in this process, the same sampler, size, steps and seed, and the same PNG
encoder.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from node.benches.bare import Work
    from node.models import Model


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
    presets: Annotated[bool, typer.Option(help="Measure what the model's presets gain and cost, too.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure a node against the bare diffusers pipeline of the same checkpoint."""
    from common.images_api import Size
    from node.benches.bare import Work
    from node.engine_names import EngineName
    from node.models import find_models

    found = find_models(list(models or []), engines={EngineName.DIFFUSERS})
    chosen = found.get(model) if model else found.default
    if chosen is None:
        raise typer.BadParameter(f"no model {model!r} in {', '.join(found.by_name)}", param_hint="--model")
    wanted = Size.parse(size) if size else chosen.profile.default_size
    profile = chosen.profile
    work = Work(wanted.width_px, wanted.height_px, steps or profile.default_steps, profile.default_guidance)
    figures = measure(
        chosen, list(models or []), work, count=count, clients=clients, device=device, threads=threads, presets=presets
    )
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        rows = [{"figure": name, "value": value} for name, value in figures.items()]
        show(rows, {"figure": "figure", "value": "value"}, as_json=False, empty="")


def measure(
    model: "Model", models: list[Path], work: "Work", *, count: int, clients: int, device: str, threads: int, presets: bool
) -> dict[str, Any]:
    """Every figure, times in seconds."""
    import torch

    from node.benches.bare import Bare
    from node.benches.figures import batch_curve, batched, beside, cancel_latency_s, preset_figures, together
    from node.benches.late import late_joiner
    from node.benches.process import running_node
    from node.engine_names import EngineName
    from node.worker.device import choose_device

    torch.set_num_threads(threads)
    kind = choose_device(device, EngineName.DIFFUSERS)
    bare = Bare(model, kind)
    named = list(model.profile.presets) if presets else []
    with running_node(models, kind, threads) as node:
        return {
            "model": model.name,
            "device": kind,
            **beside(node, bare, model.name, work, count=count),
            **together(node, bare, model.name, work, count=max(count, clients), clients=clients),
            **batched(node, bare, model.name, work, count=max(count, clients), clients=clients),
            **late_joiner(node, model.name, work, count=count),
            "batch_curve_s_per_image": batch_curve(bare, work),
            "cancel_s": cancel_latency_s(node, model.name, work),
            "presets": preset_figures(node, model.name, named, work, count=count),
            "worker_peak_bytes": node.peak_bytes(),
        }
