"""Where the weights of a model lie while it is loaded: all of them on the device, or in main memory until they are needed.

What fits decides, least cost first. On an H100 a component comes over in about a second and is then as fast as ever; layer
by layer every step waits for all of them to come over. Weights in main memory are not counted against the device's budget.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from node.engine_names import EngineName

OffloadSetting = Literal["auto", "none", "model", "group"]
"""`none` forbids it, `model` and `group` force it on any device, a CPU too."""


class Offload(StrEnum):
    """How much of a model leaves the device, the least first."""

    NONE = "none"
    """All weights stay on the device."""
    MODEL = "model"
    """One component at a time is there: text encoder, then denoiser, then autoencoder."""
    GROUP = "group"
    """One layer at a time is there, the next on its way."""

    def within(self, other: "Offload") -> bool:
        """Whether what is loaded like `other` takes no more of the device than like this."""
        return _ORDER.index(other) >= _ORDER.index(self)


_ORDER = tuple(Offload)


class Sized(Protocol):
    """What the choice needs of a checkpoint."""

    @property
    def engine(self) -> EngineName: ...

    def device_bytes(self, dtype: str, offload: Offload) -> int: ...


@dataclass(frozen=True, slots=True)
class OffloadChoice:
    """One mode, and why this one."""

    mode: Offload
    reason: str


def choose_offload(
    checkpoint: Sized,
    *,
    dtype: str,
    device: str,
    budget_bytes: int | None,
    wanted: OffloadSetting,
    at_least: Offload = Offload.NONE,
) -> OffloadChoice:
    """The first mode whose weights fit the budget; the last one where none does.

    budget_bytes: of the device, for weights; None without a bound. at_least: what memory ran out with less of.
    """
    modes = possible(checkpoint, device=device, wanted=wanted)
    if len(modes) == 1:
        return OffloadChoice(modes[0], _only(checkpoint, device, wanted))
    sizes = {mode: checkpoint.device_bytes(dtype, mode) for mode in modes}
    fitting = [mode for mode in modes if budget_bytes is None or sizes[mode] <= budget_bytes]
    mode = next((each for each in fitting if at_least.within(each)), modes[-1])
    if mode is Offload.NONE:
        return OffloadChoice(mode, f"all {sizes[mode]:,} bytes of weights fit the device")
    if budget_bytes is None or sizes[Offload.NONE] <= budget_bytes:
        return OffloadChoice(mode, "all weights fit the device, but memory ran out for pictures as large as this")
    return OffloadChoice(
        mode,
        f"the weights are {sizes[Offload.NONE]:,} bytes, of which {budget_bytes:,} may be on the device; "
        f"by {mode.value} {sizes[mode]:,} are at once",
    )


def possible(checkpoint: Sized, *, device: str, wanted: OffloadSetting) -> tuple[Offload, ...]:
    """The modes there are to choose from, the one that costs least first."""
    if checkpoint.engine is EngineName.SDCPP:
        return (Offload.NONE,)
    if wanted != "auto":
        return (Offload(wanted),)
    # Other devices compute in the very memory that weights would be moved to.
    return _ORDER if device == "cuda" else (Offload.NONE,)


def _only(checkpoint: Sized, device: str, wanted: OffloadSetting) -> str:
    if checkpoint.engine is EngineName.SDCPP:
        return "sd.cpp keeps all weights on its device"
    return (
        "the operator's choice"
        if wanted != "auto"
        else f"{device} computes in main memory: there is nowhere to move weights to"
    )
