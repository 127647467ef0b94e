"""The allow-list: which pipeline classes a folder may name, and which classes each of their components may be.

A folder's model_index.json decides what Python gets imported and called, so nothing outside this table is loaded.
Class names are those of diffusers 0.42 and transformers 5.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.images_api import Task


class Family(StrEnum):
    """What a checkpoint is, told from its files."""

    SD15 = "sd15"
    SDXL = "sdxl"
    Z_IMAGE = "z-image"
    SD3 = "sd3"
    FLUX1 = "flux.1"
    FLUX1_KONTEXT = "flux.1-kontext"
    FLUX2_KLEIN = "flux.2-klein"
    QWEN_IMAGE = "qwen-image"
    QWEN_IMAGE_EDIT = "qwen-image-edit"
    QWEN_IMAGE_EDIT_PLUS = "qwen-image-edit-plus"
    SANA = "sana"
    OVIS_IMAGE = "ovis-image"


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
_FLOW_SAMPLERS = frozenset({"FlowMatchEulerDiscreteScheduler"})
_T5_TOKENIZERS = frozenset({"T5Tokenizer", "T5TokenizerFast"})
_QWEN_TOKENIZERS = frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"})
_FLUX1 = {
    "vae": frozenset({"AutoencoderKL"}),
    "transformer": frozenset({"FluxTransformer2DModel"}),
    "scheduler": _FLOW_SAMPLERS,
}
_CLIP_AND_T5 = {
    "text_encoder": frozenset({"CLIPTextModel"}),
    "text_encoder_2": frozenset({"T5EncoderModel"}),
    "tokenizer": _CLIP_TOKENIZERS,
    "tokenizer_2": _T5_TOKENIZERS,
}
_QWEN_IMAGE = {
    "vae": frozenset({"AutoencoderKLQwenImage"}),
    "transformer": frozenset({"QwenImageTransformer2DModel"}),
    "scheduler": _FLOW_SAMPLERS,
}
_QWEN_VL = {"text_encoder": frozenset({"Qwen2_5_VLForConditionalGeneration"}), "tokenizer": _QWEN_TOKENIZERS}
_QWEN_PROCESSORS = {"processor": frozenset({"Qwen2VLProcessor", "Qwen2_5_VLProcessor"})}


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
    text_to_image: bool = True
    """False for models that only change pictures."""
    image_to_image: str | None = None
    """The class that starts from a noised picture, made of the same components; None where diffusers has none."""
    inpaint: str | None = None
    """The class that starts from a picture and a mask."""
    edit: str | None = None
    """The class that is told what to do with pictures it sees; wins over `image_to_image`."""
    max_input_images: int = 1
    """Pictures an edit may have."""

    @property
    def tasks(self) -> frozenset[Task]:
        """What its models can be asked for."""
        changes = {Task.EDIT, Task.VARIATION} if self.edit or self.image_to_image else set()
        return frozenset(changes | {Task.GENERATION}) if self.text_to_image else frozenset(changes)

    @property
    def transformer_files(self) -> bool:
        """Whether its single files hold the transformer alone: the others' hold every component."""
        return self.denoiser == "transformer"

    @property
    def takes_samplers(self) -> bool:
        """Whether a request may choose the sampler: flow-matching models have the one they were made with."""
        return self.diffusers["scheduler"] is _SAMPLERS

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
                "scheduler": _FLOW_SAMPLERS,
            },
            transformers={
                "text_encoder": frozenset({"Qwen3Model", "Qwen3ForCausalLM"}),
                "tokenizer": _QWEN_TOKENIZERS,
            },
            denoiser="transformer",
            image_to_image="ZImageImg2ImgPipeline",
            inpaint="ZImageInpaintPipeline",
        ),
        PipelineClass(
            "StableDiffusion3Pipeline",
            Family.SD3,
            diffusers={
                "vae": frozenset({"AutoencoderKL"}),
                "transformer": frozenset({"SD3Transformer2DModel"}),
                "scheduler": _FLOW_SAMPLERS,
            },
            transformers={
                "text_encoder": frozenset({"CLIPTextModelWithProjection"}),
                "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
                "text_encoder_3": frozenset({"T5EncoderModel"}),
                "tokenizer": _CLIP_TOKENIZERS,
                "tokenizer_2": _CLIP_TOKENIZERS,
                "tokenizer_3": _T5_TOKENIZERS,
            },
            denoiser="transformer",
            image_to_image="StableDiffusion3Img2ImgPipeline",
            inpaint="StableDiffusion3InpaintPipeline",
        ),
        PipelineClass(
            "FluxPipeline",
            Family.FLUX1,
            diffusers=_FLUX1,
            transformers=_CLIP_AND_T5,
            denoiser="transformer",
            image_to_image="FluxImg2ImgPipeline",
            inpaint="FluxInpaintPipeline",
        ),
        PipelineClass(
            "FluxKontextPipeline",
            Family.FLUX1_KONTEXT,
            diffusers=_FLUX1,
            transformers=_CLIP_AND_T5,
            denoiser="transformer",
            inpaint="FluxKontextInpaintPipeline",
            edit="FluxKontextPipeline",
        ),
        PipelineClass(
            "Flux2KleinPipeline",
            Family.FLUX2_KLEIN,
            diffusers={
                "vae": frozenset({"AutoencoderKLFlux2"}),
                "transformer": frozenset({"Flux2Transformer2DModel"}),
                "scheduler": _FLOW_SAMPLERS,
            },
            transformers={"text_encoder": frozenset({"Qwen3ForCausalLM"}), "tokenizer": _QWEN_TOKENIZERS},
            denoiser="transformer",
            inpaint="Flux2KleinInpaintPipeline",
            edit="Flux2KleinPipeline",
            # What Black Forest Labs' own service takes for it.
            max_input_images=4,
        ),
        PipelineClass(
            "QwenImagePipeline",
            Family.QWEN_IMAGE,
            diffusers=_QWEN_IMAGE,
            transformers=_QWEN_VL,
            denoiser="transformer",
            image_to_image="QwenImageImg2ImgPipeline",
            inpaint="QwenImageInpaintPipeline",
        ),
        PipelineClass(
            "QwenImageEditPipeline",
            Family.QWEN_IMAGE_EDIT,
            diffusers=_QWEN_IMAGE,
            transformers=_QWEN_VL | _QWEN_PROCESSORS,
            denoiser="transformer",
            text_to_image=False,
            edit="QwenImageEditPipeline",
        ),
        PipelineClass(
            "QwenImageEditPlusPipeline",
            Family.QWEN_IMAGE_EDIT_PLUS,
            diffusers=_QWEN_IMAGE,
            transformers=_QWEN_VL | _QWEN_PROCESSORS,
            denoiser="transformer",
            text_to_image=False,
            edit="QwenImageEditPlusPipeline",
            # What its model card says it was trained for.
            max_input_images=3,
        ),
        PipelineClass(
            "SanaPipeline",
            Family.SANA,
            diffusers={
                "vae": frozenset({"AutoencoderDC"}),
                "transformer": frozenset({"SanaTransformer2DModel"}),
                "scheduler": _FLOW_SAMPLERS | {"DPMSolverMultistepScheduler"},
            },
            transformers={
                "text_encoder": frozenset({"Gemma2Model"}),
                "tokenizer": frozenset({"GemmaTokenizer", "GemmaTokenizerFast"}),
            },
            denoiser="transformer",
        ),
    )
}


_ONLY_SDCPP = (
    PipelineClass(
        "OvisImage",
        Family.OVIS_IMAGE,
        diffusers={"scheduler": _FLOW_SAMPLERS},
        transformers={},
        denoiser="transformer",
        image_to_image="OvisImage",
        inpaint="OvisImage",
    ),
)
"""What stable-diffusion.cpp runs and diffusers does not here. No folder may name these."""


def class_of(family: Family) -> PipelineClass:
    """The pipeline class that runs a family."""
    return next(each for each in (*PIPELINE_CLASSES.values(), *_ONLY_SDCPP) if each.family is family)
