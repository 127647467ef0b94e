"""The allow-list: which pipeline classes a folder may name, and which classes each of their components may be.

A folder's model_index.json decides what Python gets imported and called, so nothing outside this table is loaded.
Class names are those of diffusers 0.42 and transformers 5.
"""

from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """What a checkpoint is, told from its files."""

    SD15 = "sd15"
    SDXL = "sdxl"
    Z_IMAGE = "z-image"


NOT_LOADED = {
    "safety_checker": frozenset({("stable_diffusion", "StableDiffusionSafetyChecker")}),
    "feature_extractor": frozenset({("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor")}),
    "image_encoder": frozenset({("transformers", "CLIPVisionModelWithProjection")}),
}
"""Components a folder may name and this node leaves alone: judging pictures and image prompts are not its work."""

_SAMPLERS = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
_CLIP_TOKENIZERS = frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})
_QWEN_TOKENIZERS = frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"})


@dataclass(frozen=True, slots=True)
class PipelineClass:
    """One pipeline class of diffusers and what it is made of."""

    name: str
    family: Family
    diffusers: dict[str, frozenset[str]]
    """Components from diffusers: name -> classes it may have."""
    transformers: dict[str, frozenset[str]]
    """Components from transformers: name -> classes it may have."""
    denoiser: str
    """The component whose forward passes are the steps."""
    image_to_image: str
    """The class that starts from a picture, made of the same components."""
    inpaint: str
    """The class that starts from a picture and a mask."""

    def allows(self, component: str, library: str, class_name: str) -> bool:
        """Whether a folder may say that this component is that class of that library."""
        tables = {"diffusers": self.diffusers, "transformers": self.transformers}
        return class_name in tables.get(library, {}).get(component, frozenset())

    @property
    def components(self) -> frozenset[str]:
        """Every component it cannot run without."""
        return frozenset(self.diffusers) | frozenset(self.transformers)


PIPELINE_CLASSES = {
    each.name: each
    for each in (
        PipelineClass(
            "StableDiffusionPipeline",
            Family.SD15,
            diffusers={
                "vae": frozenset({"AutoencoderKL"}),
                "unet": frozenset({"UNet2DConditionModel"}),
                "scheduler": _SAMPLERS,
            },
            transformers={"text_encoder": frozenset({"CLIPTextModel"}), "tokenizer": _CLIP_TOKENIZERS},
            denoiser="unet",
            image_to_image="StableDiffusionImg2ImgPipeline",
            inpaint="StableDiffusionInpaintPipeline",
        ),
        PipelineClass(
            "StableDiffusionXLPipeline",
            Family.SDXL,
            diffusers={
                "vae": frozenset({"AutoencoderKL"}),
                "unet": frozenset({"UNet2DConditionModel"}),
                "scheduler": _SAMPLERS,
            },
            transformers={
                "text_encoder": frozenset({"CLIPTextModel"}),
                "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
                "tokenizer": _CLIP_TOKENIZERS,
                "tokenizer_2": _CLIP_TOKENIZERS,
            },
            denoiser="unet",
            image_to_image="StableDiffusionXLImg2ImgPipeline",
            inpaint="StableDiffusionXLInpaintPipeline",
        ),
        PipelineClass(
            "ZImagePipeline",
            Family.Z_IMAGE,
            diffusers={
                "vae": frozenset({"AutoencoderKL"}),
                "transformer": frozenset({"ZImageTransformer2DModel"}),
                "scheduler": frozenset({"FlowMatchEulerDiscreteScheduler"}),
            },
            transformers={
                "text_encoder": frozenset({"Qwen3Model", "Qwen3ForCausalLM"}),
                "tokenizer": _QWEN_TOKENIZERS,
            },
            denoiser="transformer",
            image_to_image="ZImageImg2ImgPipeline",
            inpaint="ZImageInpaintPipeline",
        ),
    )
}


def class_of(family: Family) -> PipelineClass:
    """The pipeline class that runs a family."""
    return next(each for each in PIPELINE_CLASSES.values() if each.family is family)
