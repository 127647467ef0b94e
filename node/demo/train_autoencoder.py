"""First stage: the autoencoder, on drawn scenes, parts of scenes and patchworks.

Everything after it sees colours only through it, so its colours are checked before anything else is trained.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from node.demo import architecture
from node.demo.training_state import Dice, Plan, train
from node.demo.world import RGB, Drawing, Mark, draw, lay_out, random_scene, training_scene

SIDES_PX = ((64, 16), (96, 8), (96, 8), (128, 4), (192, 2))
"""(side, batch) of a step: about the same number of pixels each. Several sides, because group normalisation makes
a picture's colours depend on how much of it is ground."""
FAR_OFF = 2.0
"""Weight of the squared error: L1 alone sits at the median colour for hundreds of steps before it finds a way out."""
EDGES = 0.5
"""Weight of the difference of neighbouring pixels' differences: keeps edges sharp."""
PRIOR = 0.001
"""Weight of the KL term. Enough that a latent is known to a few percent of its range, which makes the decoder forgive
the UNet's small errors; too little to cost colours."""


def to_tensor(pictures: Sequence[Image.Image], device: torch.device | str = "cpu") -> Tensor:
    """Pictures of one size -> (B, 3, H, W) in -1..1."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in -1..1 -> pictures."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in levels]


def training_picture(rng: random.Random, side_px: int) -> Image.Image:
    """A whole scene, a part of a larger one, one in colours of no palette, or one with a patch of another in it."""
    drawing = lay_out(training_scene(rng), rng)
    kind = rng.random()
    if kind < 0.5:
        return draw(drawing, side_px, side_px)
    if kind < 0.7:
        return _part_of(drawing, rng, side_px)
    if kind < 0.85:
        return draw(_in_any_colours(drawing, rng), side_px, side_px)
    picture = draw(drawing, side_px, side_px)
    width_px, height_px = (rng.randint(side_px // 5, side_px) for _ in range(2))
    left, top = rng.randint(0, side_px - width_px), rng.randint(0, side_px - height_px)
    other = _part_of(lay_out(random_scene(rng), rng), rng, side_px)
    picture.paste(other.crop((0, 0, width_px, height_px)), (left, top))
    return picture


def _part_of(drawing: Drawing, rng: random.Random, side_px: int) -> Image.Image:
    whole_px = rng.randint(side_px, 4 * side_px)
    left, top = rng.randint(0, whole_px - side_px), rng.randint(0, whole_px - side_px)
    return draw(drawing, whole_px, whole_px).crop((left, top, left + side_px, top + side_px))


def _in_any_colours(drawing: Drawing, rng: random.Random) -> Drawing:
    def any_rgb() -> RGB:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    marks = tuple(Mark(mark.shape, any_rgb(), mark.x, mark.y, mark.diameter) for mark in drawing.marks)
    return Drawing(drawing.scene, any_rgb(), marks)


def reconstruction_loss(vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
    """L1, L2, and L1 of neighbours' differences, plus the KL term of Kingma and Welling (arXiv:1312.6114).

    pixels: (B, 3, H, W); noise: (B, 4, H/8, W/8), standard normal, the draw from the posterior.
    """
    posterior = vae.encode(pixels).latent_dist
    painted = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    error = painted - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    prior = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    loss: Tensor = error.abs().mean() + FAR_OFF * error.square().mean() + EDGES * edges + PRIOR * prior
    return loss


@torch.no_grad()
def measure_scale(vae: Any, pixels: Tensor) -> None:
    """Set `scaling_factor` so that latents have a standard deviation of 1, which the noise levels assume."""
    vae.register_to_config(scaling_factor=round(1 / vae.encode(pixels).latent_dist.mean.std().item(), 4))


def train_autoencoder(out: Path, plan: Plan, *, device: str = "cpu", save_every: int = 250, sample_every: int = 1000) -> Any:
    """Train and return the autoencoder, scaling factor set; its progress is kept in `out`/autoencoder."""
    torch.manual_seed(plan.seed)
    vae = architecture.autoencoder().to(device)

    def loss_of(chance: Dice) -> Tensor:
        side_px, batch = chance.scenes.choice(SIDES_PX)
        pixels = to_tensor([training_picture(chance.scenes, side_px) for _ in range(batch)], device)
        noise = torch.randn((batch, 4, side_px // 8, side_px // 8), generator=chance.noise)
        return reconstruction_loss(vae, pixels, noise.to(device))

    rng = random.Random(plan.seed)
    shown = [draw(lay_out(training_scene(rng), rng), 128, 128) for _ in range(16)]

    def sample() -> Image.Image:
        painted = to_pictures(vae(to_tensor(shown, device)).sample)
        return sheet([*shown[:8], *painted[:8], *shown[8:], *painted[8:]], columns=8)

    train({"vae": vae}, loss_of, plan, out / "autoencoder", save_every=save_every, sample=sample, sample_every=sample_every)
    measure_scale(vae, to_tensor([draw(lay_out(training_scene(rng), rng), 128, 128) for _ in range(64)], device))
    return vae.eval().requires_grad_(False)


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, row by row."""
    width_px, height_px = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width_px + 2), rows * (height_px + 2)), (128, 128, 128))
    for at, picture in enumerate(pictures):
        whole.paste(picture, (at % columns * (width_px + 2), at // columns * (height_px + 2)))
    return whole
