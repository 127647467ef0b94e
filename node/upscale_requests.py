"""What a request says of enlarging its picture -> how, exactly, and to what size."""

import asyncio
from dataclasses import replace

from common.errors import InvalidRequest, UserImageError
from common.images_api import Size, UpscaleAsk
from node.engines.base import RunSpec, UpscaleUse
from node.models import Model
from node.pipeline_classes import class_of
from node.upscalers import LATENT, UpscalerFile, Upscalers

MAX_PIXELS = 2**26
"""What an upscaling network may make, before that is scaled to the size asked for: 800 MB of numbers on the way."""


async def with_upscale(spec: RunSpec, ask: UpscaleAsk | None, model: Model, upscalers: Upscalers, *, masked: bool) -> RunSpec:
    """The spec with the way it is enlarged. masked: whether the input has an area to repaint.

    Raises: InvalidRequest: no such upscaler, or none for this model or method; UserImageError: too large a picture.
    """
    if ask is None:
        return spec
    if masked:
        raise _unsupported("an edit with a mask keeps the size of its picture, for what is outside stays as it was")
    if not model.by_diffusers:
        raise _unsupported(f"the model {model.name!r} is run by stable-diffusion.cpp here, which takes no 'upscale'")
    size = Size(round(spec.size.width_px * ask.by), round(spec.size.height_px * ask.by))
    use = UpscaleUse(
        by=ask.by,
        method=ask.method,
        strength=ask.second_pass,
        size=size,
        drawn=size.rounded_up_to(model.profile.size_step_px),
    )
    if ask.method != LATENT:
        file = _found(ask.method, upscalers)
        _check_size(spec.size, ask.by, file)
        # In a thread: the first use of a file reads it whole.
        use = replace(use, sha256=await asyncio.to_thread(_hash, file, upscalers))
    if use.strength is not None:
        _check_second_pass(use, model)
    return replace(spec, upscale=use)


def _found(name: str, upscalers: Upscalers) -> UpscalerFile:
    file = upscalers.by_name.get(name)
    if file is None:
        known = ", ".join(map(repr, (LATENT, *upscalers.by_name)))
        raise InvalidRequest(
            f"There is no upscaler {name[:80]!r} here; there are {known}.", param="upscale.method", code="upscaler_not_found"
        )
    return file


def _check_size(size: Size, by: float, file: UpscalerFile) -> None:
    scale = file.shape.scale
    made = size.pixels * (scale if by <= scale else scale * scale) ** 2
    if made > MAX_PIXELS:
        raise UserImageError(
            f"Invalid 'upscale': {file.name!r} would make {made:,} pixels of {size}; at most {MAX_PIXELS:,} are computed.",
            param="upscale.by",
        )


def _check_second_pass(use: UpscaleUse, model: Model) -> None:
    if class_of(model.profile.family).image_to_image is None:
        raise _unsupported(f"{model.profile.family.value} has no pipeline that starts from a picture, for a second pass")
    if fault := model.profile.size_fault(use.size) or model.profile.size_fault(use.drawn):
        raise UserImageError(f"Invalid 'upscale': of the second pass at {use.size}, {fault}", param="upscale.by")


def _hash(file: UpscalerFile, upscalers: Upscalers) -> str:
    try:
        return upscalers.sha256.of(file.path)
    except OSError as error:
        raise InvalidRequest(f"The file of an upscaler cannot be read ({error.strerror}).", param="upscale.method") from None


def _unsupported(why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'upscale': {why}.", param="upscale", code="upscale_unsupported")
