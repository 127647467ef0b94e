"""Presets: named ways to skip a part of the work of some steps, and what each costs in likeness.

A step cache takes what it computed some steps ago, or goes on from it in a straight line, instead of computing it again:
neighbouring steps are alike. The picture changes a little, so no preset but `full` is ever taken without the answer and
the run saying so.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.pipeline_classes import Family

CacheKind = Literal["deep", "taylor", "first-block"]
"""`deep`: of a UNet, all but its outermost blocks are computed at every n-th step only (DeepCache, arXiv:2312.00858, with
whole blocks). `taylor`: the blocks of a transformer at every n-th step only, and between them its output goes on in a
straight line (TaylorSeer, arXiv:2503.06923, in the form diffusers calls lite). `first-block`: the other blocks are left out
where the first one changed little since they were computed (FirstBlockCache, after TeaCache, arXiv:2411.19108)."""

_TRANSFORMER: frozenset[CacheKind] = frozenset({"taylor", "first-block"})
CACHES: dict[Family, frozenset[CacheKind]] = {
    Family.SD15: frozenset({"deep"}),
    Family.SDXL: frozenset({"deep"}),
    Family.FLUX1: _TRANSFORMER,
    Family.FLUX1_KONTEXT: _TRANSFORMER,
    # FirstBlockCache of diffusers 0.42 fails on its single blocks.
    Family.FLUX2_KLEIN: frozenset({"taylor"}),
    Family.QWEN_IMAGE: _TRANSFORMER,
    Family.QWEN_IMAGE_EDIT: _TRANSFORMER,
    Family.QWEN_IMAGE_EDIT_PLUS: _TRANSFORMER,
}
"""What runs on which family. SD 3, Sana and Z-Image have no caches in diffusers 0.42."""


class Measured(BaseModel):
    """What a preset was measured to do, beside every step in full with the same seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speed: float = Field(gt=0)
    """Times as many pictures a second."""
    psnr_db: float
    """Likeness: the median over the pictures, 8-bit RGB. At 50 dB nobody sees a difference, at 30 dB everybody."""
    how: str
    """What was measured, on what."""


class StepCache(BaseModel):
    """What one preset does with a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: CacheKind
    every: int | None = Field(default=None, ge=2, le=10)
    """Of `deep` and `taylor`: one in so many steps is computed in full."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Of `first-block`: the relative change of the first block below which the others are left out."""
    measured: Measured | None = None
    """None where nobody has measured it: `aquatint bench gpu` measures the speed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.threshold is None) != (self.cache != "first-block") or (self.every is None) != (self.cache == "first-block"):
            raise ValueError("`first-block` has a threshold, the others have `every`")
        return self
