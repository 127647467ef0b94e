"""`aquatint train demo`: the demonstration checkpoint, from nothing to a folder that can be served."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.demo.train_diffusion import Parts, Phase
    from node.demo.training_state import Plan

app = typer.Typer(no_args_is_help=True, help="Train what this project ships.")


class Stage(StrEnum):
    AUTOENCODER = "autoencoder"
    TEXT = "text"
    SMALL = "small"
    FULL = "full"
    SHARP = "sharp"
    FINISH = "finish"
    FEW_STEP = "few_step"
    FIGURES = "figures"


STEPS = {
    Stage.AUTOENCODER: 5500,
    Stage.TEXT: 700,
    Stage.SMALL: 4000,
    Stage.FULL: 5700,
    Stage.SHARP: 5600,
    Stage.FINISH: 5000,
    Stage.FEW_STEP: 200,
}
LEARNING_RATES = {
    Stage.AUTOENCODER: 2e-3,
    Stage.TEXT: 2e-3,
    Stage.SMALL: 1e-3,
    Stage.FULL: 8e-4,
    Stage.SHARP: 8e-4,
    Stage.FINISH: 6e-4,
    Stage.FEW_STEP: 1e-4,
}
"""Ten times the last one makes the adapter drift away from its teacher within a hundred steps."""
FIGURES_PICTURES = 400


@app.callback()
def training() -> None:
    """A callback keeps `demo` a subcommand: typer drops the name of an only command."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, samples and the finished pipeline.")],
    stage: Annotated[
        list[Stage] | None, typer.Option(help="Only this stage; may be repeated. Without it: all, in order.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each stage, instead of its own number.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one is fastest for nets as small as these.")] = 1,
    resume: Annotated[bool, typer.Option(help="Go on from what the folder holds; otherwise it must be empty.")] = True,
    pictures: Annotated[int, typer.Option(min=25, help="Pictures the figures are measured on.")] = FIGURES_PICTURES,
) -> None:
    """Train autoencoder, text encoder, UNet and few-step adapter; finished, OUT/checkpoint can be served.

    About three hours on one quiet CPU core. Stopping it at any point loses at most 250 steps, and going on gives the same
    weights as never having stopped.
    """
    import torch

    from node.demo.memory import keep_freed_memory
    from node.demo.training_state import Plan

    torch.set_num_threads(threads)
    keep_freed_memory()
    if not resume and out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty and --no-resume was given", param_hint="--out")
    for one in stage or list(Stage):
        if one is Stage.FIGURES:
            measure(out, pictures)
        else:
            run_stage(out, one, Plan(steps or STEPS[one], LEARNING_RATES[one], precision=precision), device=device)


def run_stage(out: Path, stage: Stage, plan: "Plan", *, device: str = "cpu", phases: "Sequence[Phase] | None" = None) -> None:
    """Train one stage to its end and write what can be served by then to `out`/checkpoint.

    phases: of the UNet, by the names of their stages; without it, those the shipped weights were trained on.
    """
    from node.demo import architecture, distill, tokenizer
    from node.demo.train_autoencoder import train_autoencoder
    from node.demo.train_diffusion import PHASES, put_mean, train_diffusion
    from node.demo.train_text import train_text

    phases = phases or PHASES
    if stage is Stage.AUTOENCODER:
        train_autoencoder(out, plan, device=device).save_pretrained(out / "parts" / "vae")
        return
    if stage is Stage.TEXT:
        words = tokenizer.learned()
        words.save_pretrained(out / "parts" / "tokenizer")
        train_text(out, words, plan, device=device).save_pretrained(out / "parts" / "text_encoder")
        return
    parts = parts_before_diffusion(out, device)
    finished = out / "checkpoint"
    if stage is Stage.FEW_STEP:
        put_mean(parts.unet, out / phases[-1].name)
        adapter = distill.distill(out, parts, plan, phases[-1].sizes, device=device)
        distill.save_adapter(adapter, finished / distill.ADAPTER)
        return
    (phase,) = (one for one in phases if one.name == stage)
    train_diffusion(out, phase, parts, plan, device=device)
    architecture.save(parts.pipeline(), finished)


def parts_before_diffusion(out: Path, device: str) -> "Parts":
    """The trained autoencoder, tokenizer and text encoder of `out` with an untrained UNet."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from node.demo import architecture, tokenizer
    from node.demo.attention import CpuAttention
    from node.demo.train_diffusion import Parts

    torch.manual_seed(0)
    unet = architecture.unet().to(device)
    if device == "cpu":
        unet.set_attn_processor(CpuAttention())
    text_encoder = CLIPTextModel.from_pretrained(out / "parts" / "text_encoder", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(out / "parts" / "vae", local_files_only=True, use_safetensors=True)
    return Parts(
        vae.to(device).eval().requires_grad_(False),
        tokenizer.load(out / "parts" / "tokenizer"),
        text_encoder.to(device).eval().requires_grad_(False),
        unet,
    )


def measure(out: Path, pictures: int) -> None:
    """Measure what the finished pipeline can do; writes `out`/figures/figures.json and sheets."""
    from node.demo import distill
    from node.demo.evaluate import all_figures

    adapter = out / "checkpoint" / distill.ADAPTER
    figures = all_figures(out / "checkpoint", adapter if adapter.exists() else None, count=pictures, out=out / "figures")
    typer.echo(figures["prompt_following"])
