"""Drawn scenes as latents, made once and kept: encoding a picture costs as much as a third of training on it."""

import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from node.demo.train_autoencoder import to_tensor
from node.demo.world import Scene, draw, lay_out, training_scene

AT_ONCE_PX = 2 * 256 * 256
"""Few enough pixels that what a layer makes of them stays in a CPU's cache."""


@dataclass(frozen=True, slots=True)
class Latents:
    """Scenes and what the autoencoder makes of them: (N, 4, h, w), scaled to a standard deviation of about 1."""

    scenes: tuple[Scene, ...]
    pictures: Tensor
    shares: tuple[float, ...]
    """How often each is to be drawn, summed up to it."""


def encoded(vae: Any, folder: Path, *, height_px: int, width_px: int, count: int, seed: int = 0) -> Latents:
    """The first `count` training scenes of a size, from `folder` where they are already there.

    A scene is decided by (seed, size, number), so an interrupted or a longer run finds the same ones again.
    """
    rng = random.Random(f"{seed}:{width_px}x{height_px}")
    drawings = [lay_out(training_scene(rng), rng) for _ in range(count)]
    path = folder / f"latents-{width_px}x{height_px}-{count}-{seed}.safetensors"
    if not path.exists():
        device = next(vae.parameters()).device
        batch = max(1, AT_ONCE_PX // (height_px * width_px))
        parts = [
            encode(vae, to_tensor([draw(drawing, width_px, height_px) for drawing in drawings[at : at + batch]], device))
            for at in range(0, count, batch)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".tmp")
        save_file({"latents": torch.cat([part.half().cpu() for part in parts]).contiguous()}, unfinished)
        unfinished.replace(path)
    scenes = tuple(drawing.scene for drawing in drawings)
    return Latents(scenes, load_file(path)["latents"], tuple(accumulate(map(share, scenes))))


LEARNED_LAST = {"star": 4.0, "circle": 2.0}
"""Extra shares of shapes. With equal ones, crosses, squares and triangles were nearly always right after 10,000 steps,
while stars were still taken for crosses and circles for squares."""


def share(scene: Scene) -> float:
    """How often a scene is trained on, relative to one easy thing: pairs, and shapes that are learned last, more often."""
    return 2 * len(scene.things) - 1 + sum(LEARNED_LAST.get(thing.shape or "", 0.0) for thing in scene.things)


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, 4, H/8, W/8): the middle of the posterior, scaled.

    In bfloat16: its rounding is a tenth of the posterior's own width, and it halves the time.
    """
    with torch.autocast(pixels.device.type, torch.bfloat16):
        latents: Tensor = vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor
    return latents


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of a shape, drawn on the CPU so that a seed means the same on every device."""
    return torch.randn(latents.shape, generator=generator).to(latents.device)
