"""Which pipelines of diffusers are guided by ControlNets, by family and method. They are made of the family's components."""

from node.engines.base import Method
from node.pipeline_classes import Family

CONTROL_CLASSES: dict[Family, dict[Method, str]] = {
    Family.SD15: {
        Method.TEXT_TO_IMAGE: "StableDiffusionControlNetPipeline",
        Method.IMAGE_PROMPT: "StableDiffusionControlNetPipeline",
        Method.IMAGE_TO_IMAGE: "StableDiffusionControlNetImg2ImgPipeline",
        Method.INPAINT: "StableDiffusionControlNetInpaintPipeline",
    },
    Family.SDXL: {
        Method.TEXT_TO_IMAGE: "StableDiffusionXLControlNetPipeline",
        Method.IMAGE_PROMPT: "StableDiffusionXLControlNetPipeline",
        Method.IMAGE_TO_IMAGE: "StableDiffusionXLControlNetImg2ImgPipeline",
        Method.INPAINT: "StableDiffusionXLControlNetInpaintPipeline",
    },
    # Of transformers, edits are guided by nets that were trained for inpainting, or not at all.
    Family.FLUX1: {Method.TEXT_TO_IMAGE: "FluxControlNetPipeline"},
    Family.SD3: {Method.TEXT_TO_IMAGE: "StableDiffusion3ControlNetPipeline"},
    Family.QWEN_IMAGE: {Method.TEXT_TO_IMAGE: "QwenImageControlNetPipeline"},
}
