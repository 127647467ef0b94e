"""Third stage: the UNet, from captions and noise to latents.

Small pictures first, where a step costs a quarter; then the sizes the pipeline is used at.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from node.demo import architecture, checker
from node.demo.captions import all_of, caption, some_of
from node.demo.latents import Latents, encoded, noise_like
from node.demo.train_autoencoder import sheet
from node.demo.train_text import token_ids
from node.demo.training_state import Dice, Plan, saved_mean, train
from node.demo.world import Scene, held_out_scene

WITHOUT_CAPTION = 0.1
"""How often the caption is empty: what classifier-free guidance compares with (Ho and Salimans, arXiv:2207.12598)."""
SAMPLED = 32
SAMPLE_STEPS = 20
SAMPLE_GUIDANCE = 3.0


@dataclass(frozen=True, slots=True)
class Size:
    """Pictures of one size in a phase. `share` is relative to the other sizes' shares."""

    width_px: int
    height_px: int
    pictures: int
    batch: int
    share: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the stage: what is trained on, and from where it starts."""

    name: str
    sizes: tuple[Size, ...]
    starts_from: str | None = None


SMALL = Phase("small", (Size(128, 128, 10000, 24, 1.0),))
FULL = Phase(
    "full",
    (
        Size(256, 256, 14000, 12, 0.92),
        Size(384, 256, 1200, 8, 0.02),
        Size(256, 384, 1200, 8, 0.02),
        Size(384, 384, 800, 5, 0.02),
        Size(512, 512, 500, 3, 0.02),
    ),
    starts_from="small",
)
SHARP = replace(FULL, name="sharp", starts_from="full")
"""A second cycle of the learning rate on full pictures: grounds, places and colours come in the first, outlines in this."""
FINISH = replace(FULL, name="finish", starts_from="sharp")
"""A third, lower one: the second thing of a pair, and the corners of small shapes."""
PHASES = (SMALL, FULL, SHARP, FINISH)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a caption passes through on its way to a picture."""

    vae: Any
    tokenizer: Any
    text_encoder: Any
    unet: Any

    @torch.no_grad()
    def read(self, captions: Sequence[str], device: torch.device | str) -> Tensor:
        """(B, 77, 128): what the UNet gets of captions."""
        states: Tensor = self.text_encoder(token_ids(self.tokenizer, list(captions), device))[0]
        return states

    def pipeline(self) -> Any:
        return architecture.pipeline(
            autoencoder=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet
        )


class Noising:
    """The forward process of `architecture.sampler()`."""

    def __init__(self, device: torch.device | str) -> None:
        self.kept = architecture.sampler().alphas_cumprod.to(device)
        """Part of the picture's variance left at each timestep: (1000,)."""

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) scales, each (B, 1, 1, 1)."""
        kept = self.kept[timesteps][:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal_scale, noise_scale = self.scales(timesteps)
        return signal_scale * latents + noise_scale * noise

    def velocity(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet predicts (Salimans and Ho, arXiv:2202.00512): v = a * noise - s * latents."""
        signal_scale, noise_scale = self.scales(timesteps)
        return signal_scale * noise - noise_scale * latents


def pick_batch(chance: Dice, sizes: Sequence[Size], sources: Sequence[Latents]) -> tuple[Tensor, list[Scene]]:
    """Latents of one size and their scenes, each as often as its share says."""
    (at,) = chance.scenes.choices(range(len(sizes)), [size.share for size in sizes])
    source = sources[at]
    numbers = chance.scenes.choices(range(len(source.scenes)), cum_weights=source.shares, k=sizes[at].batch)
    return source.pictures[numbers].float(), [source.scenes[number] for number in numbers]


def training_caption(scene: Scene, rng: random.Random) -> str:
    return "" if rng.random() < WITHOUT_CAPTION else caption(some_of(scene, rng), rng)


def train_diffusion(
    out: Path,
    phase: Phase,
    parts: Parts,
    plan: Plan,
    *,
    device: str = "cpu",
    save_every: int = 250,
    sample_every: int = 1000,
) -> None:
    """Train `parts.unet` in place; progress is kept in `out`/<phase>."""
    if phase.starts_from:
        put_mean(parts.unet, out / phase.starts_from)
    sources = [
        encoded(parts.vae, out / "latents", height_px=size.height_px, width_px=size.width_px, count=size.pictures)
        for size in phase.sizes
    ]
    noising = Noising(device)

    def loss_of(chance: Dice) -> Tensor:
        latents, scenes = pick_batch(chance, phase.sizes, sources)
        latents = latents.to(device)
        noise = noise_like(latents, chance.noise)
        timesteps = some_timesteps(len(latents), chance.noise).to(device)
        text = parts.read([training_caption(scene, chance.scenes) for scene in scenes], device)
        predicted = parts.unet(noising.noised(latents, noise, timesteps), timesteps, text).sample
        return F.mse_loss(predicted.float(), noising.velocity(latents, noise, timesteps))

    train(
        {"unet": parts.unet},
        loss_of,
        plan,
        out / phase.name,
        save_every=save_every,
        sample=lambda: sample_sheet(parts, phase.sizes[0], out / phase.name),
        sample_every=sample_every,
    )


def some_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(count,) timesteps in 0..999, more of the noisy ones: there the caption decides, below only the edges do."""
    return (1000 * torch.rand(count, generator=generator) ** 0.6).long().clamp(max=999)


def put_mean(unet: Any, folder: Path) -> None:
    """Give the UNet the averaged weights of an earlier phase."""
    mean = saved_mean(folder)
    unet.load_state_dict({name.removeprefix("unet."): mean[name] for name in mean if name.startswith("unet.")})


def sample_sheet(parts: Parts, size: Size, folder: Path) -> Image.Image:
    """Pictures of held-out captions; how many the checker finds right goes to `folder`/right.txt."""
    rng = random.Random("samples")
    scenes = [all_of(held_out_scene(rng)) for _ in range(SAMPLED)]
    painter = parts.pipeline()
    painter.set_progress_bar_config(disable=True)
    pictures = painter(
        [caption(scene, rng) for scene in scenes],
        height=size.height_px,
        width=size.width_px,
        num_inference_steps=SAMPLE_STEPS,
        guidance_scale=SAMPLE_GUIDANCE,
        generator=[torch.Generator().manual_seed(number) for number in range(SAMPLED)],
    ).images
    verdicts = [checker.compare(scene, checker.look(picture)) for scene, picture in zip(scenes, pictures, strict=True)]
    with (folder / "right.txt").open("a") as lines:
        aspects = ("ground", "count", "colour", "shape", "size", "place", "all_right")
        lines.write(" ".join(f"{name} {sum(getattr(one, name) for one in verdicts)}" for name in aspects) + "\n")
    return sheet(pictures, columns=8)
