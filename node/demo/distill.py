"""Third stage: an adapter with which four steps without guidance paint what twenty guided ones do.

Latent consistency distillation into a LoRA: Luo et al., "LCM-LoRA" (arXiv:2311.05556). The teacher is the same UNet
with the adapter off. One guided DDIM step of the teacher takes a noisy picture a little towards clean; the student must
see the same clean picture from both ends of that step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from node.demo.captions import caption, some_of
from node.demo.latents import encoded, noise_like
from node.demo.train_diffusion import Noising, Parts, Size, pick_batch
from node.demo.training_state import Dice, Plan, train

ADAPTER = "few_step"
RANK = 16
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
TEACHER_STEPS = 50
"""Also LCMScheduler's `original_inference_steps`: the student only ever sees these noise levels."""
GUIDANCE = 3.0
"""Fixed, not drawn from a range: the adapter is served without a guidance input, so it needs only the one."""
HUBER = 0.001


def add_adapter(unet: Any, seed: int) -> None:
    """Freeze the UNet and give it a LoRA that at first changes nothing."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS)),
        adapter_name=ADAPTER,
    )


def clean(noising: Noising, latents: Tensor, velocity: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(picture, noise) that a velocity says a noisy picture is made of.

    At the noise levels used, the boundary scalings of consistency models (c_skip, c_out of LCMScheduler) are 0 and 1
    to five digits, so the student's answer is this picture itself.
    """
    signal_scale, noise_scale = noising.scales(timesteps)
    return signal_scale * latents - noise_scale * velocity, noise_scale * latents + signal_scale * velocity


class Distillation:
    """The loss of one step, with everything it needs."""

    def __init__(self, parts: Parts, sizes: Sequence[Size], out: Path, device: str) -> None:
        self.parts, self.sizes, self.device = parts, sizes, device
        self.sources = [
            encoded(parts.vae, out / "latents", height_px=size.height_px, width_px=size.width_px, count=size.pictures)
            for size in sizes
        ]
        self.noising = Noising(device)
        self.unasked = parts.read([""], device)

    def loss(self, chance: Dice) -> Tensor:
        latents, scenes = pick_batch(chance, self.sizes, self.sources)
        latents = latents.to(self.device)
        words = [caption(some_of(scene, chance.scenes), chance.scenes) for scene in scenes]
        between = 1000 // TEACHER_STEPS
        level = torch.randint(TEACHER_STEPS, (len(latents),), generator=chance.noise).to(self.device)
        start = (level + 1) * between - 1
        noisy = self.noising.noised(latents, noise_like(latents, chance.noise), start)
        with torch.no_grad():
            text = self.parts.read(words, self.device)
            target = self._target(noisy, start, (start - between).clamp(min=0), text)
        seen, _ = clean(self.noising, noisy, self.parts.unet(noisy, start, text).sample.float(), start)
        return ((seen - target).square() + HUBER**2).sqrt().mean() - HUBER

    def _target(self, noisy: Tensor, start: Tensor, end: Tensor, text: Tensor) -> Tensor:
        """What the student sees after one guided DDIM step of the teacher (Song et al., arXiv:2010.02502)."""
        unet = self.parts.unet
        unet.disable_adapters()
        both = torch.cat([text, self.unasked.expand_as(text)])
        asked, unasked = unet(noisy.repeat(2, 1, 1, 1), start.repeat(2), both).sample.float().chunk(2)
        unet.enable_adapters()
        picture, noise = clean(self.noising, noisy, unasked + GUIDANCE * (asked - unasked), start)
        nearer = self.noising.noised(picture, noise, end)
        seen, _ = clean(self.noising, nearer, unet(nearer, end, text).sample.float(), end)
        # The last level has no step left to take: there the teacher's own picture is the answer.
        return torch.where((end == 0)[:, None, None, None], picture, seen)


def distill(
    out: Path, parts: Parts, plan: Plan, sizes: Sequence[Size], *, device: str = "cpu", save_every: int = 250
) -> dict[str, Tensor]:
    """Train the adapter on `parts.unet`; progress is kept in `out`/few_step. Returns the adapter's weights."""
    from peft.utils import get_peft_model_state_dict

    add_adapter(parts.unet, plan.seed)
    distillation = Distillation(parts, sizes, out, device)
    train({"unet": parts.unet}, distillation.loss, plan, out / ADAPTER, save_every=save_every)
    weights: dict[str, Tensor] = get_peft_model_state_dict(parts.unet, adapter_name=ADAPTER)
    return weights


def save_adapter(weights: dict[str, Tensor], folder: Path) -> None:
    """Write an adapter as `load_lora_weights` reads it, in fp16."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers={name: weight.half().cpu().contiguous() for name, weight in weights.items()}
    )
