"""A request and a profile -> a spec: every choice made, every limit checked, and what had no effect told by name."""

from dataclasses import dataclass
from typing import cast, get_args

from common.errors import InvalidRequest, UserImageError
from common.images_api import ImageRequest, InputFidelity, OutputFormat, Quality, Size, Style, Task
from node.engines.base import Method, RunSpec
from node.pipeline_classes import Family
from node.profile import Profile, Sampler

SAMPLERS = get_args(Sampler)

MAX_IMAGES = 10
"""OpenAI's limit for one request."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A spec, and the request as it was understood."""

    spec: RunSpec
    ignored: tuple[str, ...]
    """Fields the client sent that had no effect with this model, and keys nobody knows."""


def resolve(request: ImageRequest, model: str, profile: Profile, *, embed_parameters: bool, masked: bool = False) -> Resolved:
    """Make every choice the client left open. masked: whether the input has an area to repaint.

    Raises: UserImageError: a size this model cannot make; InvalidRequest: n, steps, guidance or seed outside its range.
    """
    if request.n > MAX_IMAGES:
        raise InvalidRequest(
            f"Invalid 'n': integer above maximum value. Expected a value <= {MAX_IMAGES}, but got {request.n} instead.",
            param="n",
            code="integer_above_max_value",
        )
    seeded = request.with_seed()
    assert seeded.seed is not None
    if len(request.images) > 1:
        raise InvalidRequest(
            f"Invalid 'image': this model takes at most 1 image, but got {len(request.images)} instead.",
            param="image",
            code="array_above_max_length",
        )
    size = request.size or _size_of_input(request, profile) or profile.default_size
    drawn = size.rounded_up_to(profile.size_step_px)
    if fault := profile.size_fault(size) or profile.size_fault(drawn):
        raise UserImageError(f"Invalid size '{size}'. {fault[0].upper()}{fault[1:]}", param="size")
    steps, quality = _steps(request, profile)
    guidance = _guidance(request, profile)
    if request.task is Task.VARIATION and request.guidance_scale is None and profile.takes_guidance:
        # Without a prompt there is nothing to be guided towards.
        guidance = max(1.0, profile.min_guidance)
    guided = profile.takes_guidance and guidance > 1
    method, strength = _method(request, masked, profile)
    negative_prompt = request.negative_prompt if request.negative_prompt is not None else profile.default_negative_prompt
    spec = RunSpec(
        model=model,
        prompt=profile.rendered(request.prompt) if request.task is not Task.VARIATION else "",
        negative_prompt=negative_prompt if guided else "",
        seeds=tuple(range(seeded.seed, seeded.seed + request.n)),
        drawn=drawn,
        size=size,
        steps=steps,
        guidance=guidance,
        sampler=_sampler(request, profile),
        timestep_spacing=profile.timestep_spacing,
        output_format=request.output_format,
        output_compression=None if request.output_format is OutputFormat.PNG else request.output_compression,
        quality=quality,
        embed_parameters=embed_parameters and request.embed_metadata,
        method=method,
        strength=strength,
        feather_px=request.mask_feather_px if method is Method.INPAINT else 0,
        previews=request.partial_images if request.stream else 0,
    )
    names = _without_effect(request, profile, guided=guided, method=method)
    return Resolved(spec, request.ignoring(names).ignored)


def _size_of_input(request: ImageRequest, profile: Profile) -> Size | None:
    """`auto` with an uploaded picture: its own size, or the nearest that the model makes."""
    if not request.images:
        return None
    image = request.images[0]
    return profile.nearest_size(Size(image.width_px, image.height_px))


def _method(request: ImageRequest, masked: bool, profile: Profile) -> tuple[Method, float | None]:
    if request.task is Task.GENERATION:
        return Method.TEXT_TO_IMAGE, None
    if request.task is Task.VARIATION:
        usual, method = profile.variation_strength, Method.IMAGE_TO_IMAGE
    elif masked:
        usual, method = profile.inpaint_strength, Method.INPAINT
    else:
        faithful = request.input_fidelity is InputFidelity.HIGH
        usual, method = profile.faithful_strength if faithful else profile.edit_strength, Method.IMAGE_TO_IMAGE
    return method, usual if request.strength is None else request.strength


def _sampler(request: ImageRequest, profile: Profile) -> Sampler:
    if request.sampler is None:
        return profile.sampler
    if profile.family is Family.Z_IMAGE or request.sampler not in SAMPLERS:
        known = ", ".join(repr(name) for name in (SAMPLERS if profile.family is not Family.Z_IMAGE else ("checkpoint",)))
        raise InvalidRequest(f"Invalid 'sampler': this model has {known}, but got {request.sampler[:64]!r}.", param="sampler")
    return cast("Sampler", request.sampler)


def _steps(request: ImageRequest, profile: Profile) -> tuple[int, str]:
    """Steps, and the quality told in the answer, which is never `auto`."""
    wanted = request.num_inference_steps
    if wanted is not None and not profile.min_steps <= wanted <= profile.max_steps:
        raise InvalidRequest(
            f"Invalid 'num_inference_steps': this model takes {profile.min_steps} to {profile.max_steps}, but got {wanted}.",
            param="num_inference_steps",
        )
    if request.quality is not Quality.AUTO:
        return wanted or profile.quality_steps[request.quality], request.quality.value
    steps = wanted or profile.default_steps
    # The best quality whose steps are really made; of several with equal steps, the lowest of them.
    reached = [quality for quality, needed in profile.quality_steps.items() if needed <= steps]
    best = max(reached, key=lambda quality: profile.quality_steps[quality], default=Quality.LOW)
    return steps, best.value


def _guidance(request: ImageRequest, profile: Profile) -> float:
    wanted = request.guidance_scale
    if wanted is None or not profile.takes_guidance:
        guidance = profile.default_guidance
        if request.style is Style.NATURAL and profile.natural_guidance is not None:
            guidance = min(guidance, profile.natural_guidance)
        return guidance
    if not profile.min_guidance <= wanted <= profile.max_guidance:
        raise InvalidRequest(
            f"Invalid 'guidance_scale': this model takes {profile.min_guidance:g} to {profile.max_guidance:g}, "
            f"but got {wanted:g}.",
            param="guidance_scale",
        )
    return wanted


def _without_effect(request: ImageRequest, profile: Profile, *, guided: bool, method: Method) -> list[str]:
    """Names of fields that were sent and changed nothing."""
    names = []
    if request.negative_prompt and not guided:
        names.append("negative_prompt")
    if request.guidance_scale is not None and not profile.takes_guidance:
        names.append("guidance_scale")
    if request.style is not None and (profile.natural_guidance is None or request.guidance_scale is not None):
        names.append("style")
    if request.quality is not Quality.AUTO and request.num_inference_steps is not None:
        names.append("quality")
    if request.output_compression is not None and request.output_format is OutputFormat.PNG:
        names.append("output_compression")
    if request.input_fidelity is not None and (method is not Method.IMAGE_TO_IMAGE or request.strength is not None):
        names.append("input_fidelity")
    if request.mask_feather_px and method is not Method.INPAINT:
        names.append("mask_feather_px")
    if request.partial_images and not request.stream:
        names.append("partial_images")
    return names
