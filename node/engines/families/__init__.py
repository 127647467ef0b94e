"""How the pipelines of each model family are called: what one family's code knows that another's does not."""

from node.engines.families.base import FamilyCalls
from node.engines.families.flux import Flux1, Flux2Klein, Kontext
from node.engines.families.qwen_image import QwenImage, QwenImageEdit, QwenImageEditPlus
from node.engines.families.sana import Sana
from node.engines.families.stable_diffusion import StableDiffusion3, StableDiffusion15, StableDiffusionXL
from node.engines.families.z_image import ZImage
from node.pipeline_classes import Family

_CALLS: dict[Family, FamilyCalls] = {
    Family.SD15: StableDiffusion15(),
    Family.SDXL: StableDiffusionXL(),
    Family.SD3: StableDiffusion3(),
    Family.Z_IMAGE: ZImage(),
    Family.FLUX1: Flux1(),
    Family.FLUX1_KONTEXT: Kontext(),
    Family.FLUX2_KLEIN: Flux2Klein(),
    Family.QWEN_IMAGE: QwenImage(),
    Family.QWEN_IMAGE_EDIT: QwenImageEdit(),
    Family.QWEN_IMAGE_EDIT_PLUS: QwenImageEditPlus(),
    Family.SANA: Sana(),
}


def calls_of(family: Family) -> FamilyCalls:
    """The calls of a family."""
    return _CALLS[family]
