"""The engines a node can have, and which are installed. Knows their packages by name only, and imports none."""

from enum import StrEnum
from importlib.util import find_spec


class EngineName(StrEnum):
    """What runs checkpoints."""

    DIFFUSERS = "diffusers"
    SDCPP = "sdcpp"
    """stable-diffusion.cpp: GGUF, and safetensors without torch."""


_PACKAGES = {EngineName.DIFFUSERS: ("torch", "diffusers", "transformers"), EngineName.SDCPP: ("stable_diffusion_cpp",)}
EXTRAS = {EngineName.DIFFUSERS: "aquatint[node]", EngineName.SDCPP: "aquatint[sdcpp]"}
"""What pip is told to install for each."""


def installed_engines() -> frozenset[EngineName]:
    """Those whose packages are all here."""
    return frozenset(engine for engine, packages in _PACKAGES.items() if all(map(find_spec, packages)))
