"""One step of each family: what its pipeline does between two callbacks, for several pictures that know nothing of each other.

Taken from diffusers 0.42's pipelines line by line (`__call__` of `StableDiffusionPipeline`, `StableDiffusionXLPipeline` and
`ZImagePipeline`), whose numbers it gives to the bit for a picture alone.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas
from diffusers.utils.torch_utils import randn_tensor

from node.engines.base import RunSpec
from node.engines.prompts import Prompt
from node.engines.samplers import make_sampler
from node.pipeline_classes import Family

Tensors = Sequence[torch.Tensor]


@dataclass(slots=True, eq=False)
class Painting:
    """One picture at work, with everything that is its own."""

    spec: RunSpec
    prompt: Prompt
    sampler: Any
    """Its timesteps are set."""
    latents: torch.Tensor
    """(1, channels, height, width) as the sampler holds them."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the sampler's step."""
    done: int = 0
    """Steps of the sampler that are made."""

    @property
    def finished(self) -> bool:
        return self.done == len(self.sampler.timesteps)

    @property
    def timestep(self) -> torch.Tensor:
        """Of the next step; no dimensions."""
        timestep: torch.Tensor = self.sampler.timesteps[self.done]
        return timestep

    @property
    def told(self) -> int:
        """Steps made, as they are told: some solvers make one more than was asked for."""
        return min(self.done, self.spec.forwards)

    def advance(self, predicted: torch.Tensor) -> None:
        """Make a step. predicted: of the latents' shape, guided."""
        step = self.sampler.step(predicted, self.timestep, self.latents, **self.options, return_dict=False)
        self.latents = step[0]
        self.done += 1


class Steps(ABC):
    """The steps of one loaded pipeline."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._device = pipeline._execution_device

    @abstractmethod
    def begin(self, spec: RunSpec, prompt: Prompt, seed: int) -> Painting:
        """A picture before its first step."""

    @abstractmethod
    def alike(self, painting: Painting) -> Hashable:
        """What pictures must have in common for one forward pass."""

    @abstractmethod
    def predict(self, paintings: Sequence[Painting]) -> Tensors:
        """What the model says of each, guided: one forward pass. It may be asked again, for nothing is changed by it."""

    def _sampler(self, spec: RunSpec) -> Any:
        return make_sampler(spec.sampler, self._pipeline.scheduler, spec.timestep_spacing)


class UNetSteps(Steps):
    """SD 1.5: one tensor a pass, so pictures of one size and prompts of one length."""

    def begin(self, spec: RunSpec, prompt: Prompt, seed: int) -> Painting:
        pipeline, sampler = self._pipeline, self._sampler(spec)
        sampler.set_timesteps(spec.steps, device=self._device)
        factor = pipeline.vae_scale_factor
        shape = (1, pipeline.unet.config.in_channels, spec.drawn.height_px // factor, spec.drawn.width_px // factor)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = randn_tensor(shape, generator=generator, device=self._device, dtype=prompt.arguments["prompt_embeds"].dtype)
        # What the pipeline calls extra: 0 is its own default of eta.
        known = inspect.signature(sampler.step).parameters
        options = {name: value for name, value in (("eta", 0.0), ("generator", generator)) if name in known}
        return Painting(spec, prompt, sampler, noise * sampler.init_noise_sigma, options)

    def alike(self, painting: Painting) -> Hashable:
        return painting.latents.shape, painting.prompt.arguments["prompt_embeds"].shape

    def predict(self, paintings: Sequence[Painting]) -> Tensors:
        rows = [1 if self._guidance(each) is None else 2 for each in paintings]
        texts = [text for each in paintings for text in self._texts(each)]
        scaled = [each.sampler.scale_model_input(each.latents, each.timestep) for each in paintings]
        # As float, for solvers tell timesteps in whole numbers or not; the UNet makes floats of them anyway.
        timesteps = [each.timestep.float().to(self._device) for each in paintings]
        told = self._pipeline.unet(
            torch.cat([latents for latents, count in zip(scaled, rows, strict=True) for _ in range(count)]),
            torch.stack([timestep for timestep, count in zip(timesteps, rows, strict=True) for _ in range(count)]),
            encoder_hidden_states=torch.cat(texts),
            timestep_cond=self._guidance_embedding(paintings),
            added_cond_kwargs=self._added(paintings),
            return_dict=False,
        )[0]
        return [self._guided(each, part) for each, part in zip(paintings, told.split(rows), strict=True)]

    def _guidance(self, painting: Painting) -> float | None:
        """Of classifier-free guidance; None without it, or where the UNet is told of guidance instead."""
        guidance = painting.spec.guidance
        return guidance if guidance > 1 and self._pipeline.unet.config.time_cond_proj_dim is None else None

    def _texts(self, painting: Painting, kind: str = "prompt_embeds") -> Tensors:
        """The embeddings of its rows."""
        embeddings = painting.prompt.arguments
        unguided = self._guidance(painting) is None
        return [embeddings[kind]] if unguided else [embeddings[f"negative_{kind}"], embeddings[kind]]

    def _added(self, paintings: Sequence[Painting]) -> dict[str, torch.Tensor] | None:
        """What the UNet is told beside the text."""
        return None

    def _guidance_embedding(self, paintings: Sequence[Painting]) -> torch.Tensor | None:
        """For UNets that are distilled from guidance (LCM)."""
        width = self._pipeline.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scales = torch.tensor([each.spec.guidance - 1 for each in paintings])
        embedding: torch.Tensor = self._pipeline.get_guidance_scale_embedding(scales, embedding_dim=width)
        return embedding.to(device=self._device, dtype=paintings[0].latents.dtype)

    def _guided(self, painting: Painting, told: torch.Tensor) -> torch.Tensor:
        guidance = self._guidance(painting)
        if guidance is None:
            return told
        unwanted, wanted = told.chunk(2)
        return unwanted + guidance * (wanted - unwanted)


class XLSteps(UNetSteps):
    """SDXL, whose UNet is also told the whole text in one vector, and the size: of the original and of what was cut from it."""

    def _added(self, paintings: Sequence[Painting]) -> dict[str, torch.Tensor]:
        pooled = [text for each in paintings for text in self._texts(each, "pooled_prompt_embeds")]
        rows = [self._sizes(each) for each in paintings for _ in self._texts(each)]
        sizes = torch.tensor(rows, dtype=paintings[0].prompt.arguments["prompt_embeds"].dtype)
        return {"text_embeds": torch.cat(pooled), "time_ids": sizes.to(self._device)}

    @staticmethod
    def _sizes(painting: Painting) -> tuple[int, ...]:
        """The pipeline's defaults: the size drawn, nothing cut off, and that size again."""
        size = (painting.spec.drawn.height_px, painting.spec.drawn.width_px)
        return (*size, 0, 0, *size)


class ZImageSteps(Steps):
    """Z-Image, whose transformer takes lists: any sizes and prompts in one pass, each filled up to the longest."""

    def begin(self, spec: RunSpec, prompt: Prompt, seed: int) -> Painting:
        pipeline, sampler = self._pipeline, self._sampler(spec)
        step_px = 2 * pipeline.vae_scale_factor
        height, width = (2 * (side_px // step_px) for side_px in (spec.drawn.height_px, spec.drawn.width_px))
        shape = (1, pipeline.transformer.in_channels, height, width)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = randn_tensor(shape, generator=generator, device=self._device, dtype=torch.float32)
        usual = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        shift = calculate_shift(height // 2 * (width // 2), *(sampler.config.get(name, value) for name, value in usual.items()))
        sampler.set_timesteps(sigmas=get_default_z_image_sigmas(spec.steps), device=self._device, mu=shift)
        sampler.set_begin_index(0)
        return Painting(spec, prompt, sampler, noise)

    def alike(self, painting: Painting) -> Hashable:
        return None

    def predict(self, paintings: Sequence[Painting]) -> Tensors:
        dtype = self._pipeline.transformer.dtype
        texts = [self._texts(each) for each in paintings]
        rows = [(each, text) for each, own in zip(paintings, texts, strict=True) for text in own]
        told = self._pipeline.transformer(
            [each.latents.to(dtype)[0].unsqueeze(1) for each, _ in rows],
            torch.stack([(1000 - each.timestep) / 1000 for each, _ in rows]),
            [text for _, text in rows],
            return_dict=False,
        )[0]
        parts = iter(told)
        return [self._guided(each, [next(parts).float() for _ in own]) for each, own in zip(paintings, texts, strict=True)]

    def _texts(self, painting: Painting) -> Tensors:
        """The wanted one, and the unwanted one where there is guidance: above 0 in this pipeline, above 1 in our encoding."""
        embeddings = painting.prompt.arguments
        wanted, unwanted = embeddings["prompt_embeds"], embeddings.get("negative_prompt_embeds", [])
        return [*wanted, *unwanted]

    def _guided(self, painting: Painting, told: Tensors) -> torch.Tensor:
        predicted = told[0]
        if len(told) == 2:
            predicted = predicted + painting.spec.guidance * (predicted - told[1])
        return -predicted[None].squeeze(2)


_STEPS: dict[Family, type[Steps]] = {Family.SD15: UNetSteps, Family.SDXL: XLSteps, Family.Z_IMAGE: ZImageSteps}


def steps_of(family: Family, pipeline: Any) -> Steps | None:
    """The steps of a pipeline; None for a family whose loop is only the pipeline's own."""
    steps = _STEPS.get(family)
    return None if steps is None else steps(pipeline)
