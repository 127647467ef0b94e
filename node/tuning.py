"""What an operator may choose of how an engine computes, none of which changes pictures beyond rounding."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Attention = Literal["auto", "native", "cudnn", "flash", "flash3", "xformers"]


class Tuning(BaseModel):
    """`auto` is what is known to pay on the device; the status says what came of it, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compile: Literal["off", "auto", "on"] = "off"
    """Of the blocks that repeat in a denoiser, beside the runs. `auto`: on cuda."""
    attention: Attention = "auto"
    """Which implementation; torch's own where the one named is not there."""
    channels_last: Literal["off", "auto", "on"] = "auto"
    """The memory format of UNets and autoencoders. `auto`: on cuda with half precision."""


USUAL = Tuning()
"""Where nothing is set."""
