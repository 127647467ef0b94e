"""What family of models a LoRA was made for, and what it consists of: told from its tensors, never from its name.

Two ways of naming are common: kohya's (`lora_unet_..._to_k.lora_down.weight`, one underscore for every dot, which
AUTOMATIC1111's and ComfyUI's files use) and diffusers' (`unet....to_k.lora_A.weight`). Metadata is asked only where
tensors do not tell: makers copy it from one file to the next.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from node.pipeline_classes import Family
from node.safetensors_header import TensorEntry

DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight")
"""Endings of the first of the two matrices, whose first side is the rank: one for each layer that is changed."""
UNSUPPORTED = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid": "LoCon with a middle matrix",
}
"""Marks of kin that are not the two plain matrices; engines would drop or misread them without a word."""

_OTHERS = (
    # Families named so that a refusal can say what the file is. In the order they are tried.
    ("flux.2", re.compile(r"to_qkv_mlp_proj|[._]ff(_context)?[._]linear_(in|out)|stream_modulation")),
    ("flux.1", re.compile(r"(single_transformer_blocks|double_blocks|single_blocks)[._]")),
    ("sd3", re.compile(r"joint_blocks[._]|transformer[._]transformer_blocks[._]\d+[._]attn[._]add_q_proj")),
    ("qwen-image", re.compile(r"transformer_blocks[._]\d+[._](img_mlp|txt_mlp|img_mod|txt_mod)")),
    (Family.Z_IMAGE.value, re.compile(r"(^|[._])(layers|noise_refiner|context_refiner)[._]\d+[._](attention|feed_forward)")),
)
_SD = re.compile(r"^(lora_unet_|unet\.|lora_te_|text_encoder\.)")
_SDXL = re.compile(r"^lora_te2_|^text_encoder_2\.|transformer_blocks[._][1-9]|[._](add_embedding|label_emb)")
_CROSS_ATTENTION = re.compile(r"attn2[._](processor\.)?to_[kv]")
_TEXT_WIDTHS = {768: Family.SD15.value, 1024: "sd2", 2048: Family.SDXL.value}
"""Width of the text embeddings that cross-attention reads, of the families' own models."""
_METADATA = (
    (re.compile(r"sdxl|stable-diffusion-xl", re.IGNORECASE), Family.SDXL.value),
    (re.compile(r"sd_?v2|stable-diffusion-v2", re.IGNORECASE), "sd2"),
    (re.compile(r"sd_?(v1|1)|stable-diffusion-v1", re.IGNORECASE), Family.SD15.value),
    (re.compile(r"z-?_?image", re.IGNORECASE), Family.Z_IMAGE.value),
    (re.compile(r"flux[._-]?2", re.IGNORECASE), "flux.2"),
    (re.compile(r"flux", re.IGNORECASE), "flux.1"),
    (re.compile(r"qwen", re.IGNORECASE), "qwen-image"),
)


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What a LoRA's header says of it."""

    family: str
    """A `Family`, or the name of one this node does not run."""
    rank: int
    """The largest of its layers."""
    layers: int
    """How many layers of the model it changes."""
    elements: int
    """Of all its tensors."""

    def fits(self, family: str) -> bool:
        """Whether it was made for a family of models, or for the one that this one is a variety of (`NAME-variety`)."""
        return family == self.family or family.startswith(f"{self.family}-")


def shape_of(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> LoraShape | str:
    """What a file is; a text when it is no LoRA that can be loaded, saying why."""
    for mark, kind in UNSUPPORTED.items():
        if any(mark in name for name in tensors):
            return f"{kind}, which no engine of this node applies; plain LoRA only"
    downs = {name: entry for name, entry in tensors.items() if name.endswith(DOWN)}
    if not downs:
        return "no LoRA: none of its tensors is named lora_down or lora_A"
    if any(len(entry.shape) not in (2, 4) for entry in downs.values()):
        return "no LoRA: a matrix that is none"
    family = _family(downs) or _told_family(metadata)
    if family is None:
        return "a LoRA of no family that is known here"
    elements = sum(entry.elements for entry in tensors.values())
    return LoraShape(family, max(entry.shape[0] for entry in downs.values()), len(downs), elements)


def _family(downs: Mapping[str, TensorEntry]) -> str | None:
    for family, mark in _OTHERS:
        if any(mark.search(name) for name in downs):
            return family
    widths = {entry.shape[1] for name, entry in downs.items() if _CROSS_ATTENTION.search(name)}
    known = {_TEXT_WIDTHS[width] for width in widths if width in _TEXT_WIDTHS}
    if len(known) == 1:
        return known.pop()
    if any(_SDXL.search(name) for name in downs):
        return Family.SDXL.value
    return Family.SD15.value if any(_SD.search(name) for name in downs) else None


def _told_family(metadata: Mapping[str, str]) -> str | None:
    said = " ".join(metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    return next((family for mark, family in _METADATA if mark.search(said)), None)
