"""A request and a profile -> a spec: every choice made, every limit checked, and what had no effect told by name."""

from dataclasses import dataclass
from typing import cast, get_args

from common.errors import InvalidRequest, UnsupportedTask, UserImageError
from common.images_api import ImageRequest, InputFidelity, OutputFormat, Preset, Quality, Size, Style, Task, Upload
from node.engines.base import LoraUse, Method, RunSpec
from node.pipeline_classes import class_of
from node.profile import Profile, Sampler
from node.prompt_weights import pieces_of, without_weights

SAMPLERS = get_args(Sampler)

MAX_IMAGES = 10
"""OpenAI's limit for one request."""


MAX_SOURCE_RATIO = 8
"""Of the sides of a picture to be looked at: FLUX.2 refuses more, and the others scale what is left to nothing."""
VARIATION_PROMPT = "Create a variation of this image, keep subject and style."
"""What a model that follows instructions is told where a client gives none."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A spec, and the request as it was understood."""

    spec: RunSpec
    ignored: tuple[str, ...]
    """Fields the client sent that had no effect with this model, and keys nobody knows."""


def check_task(request: ImageRequest, model: str, profile: Profile) -> None:
    """Refuse what the model's family cannot do, before an upload is decoded.

    Raises: UnsupportedTask; InvalidRequest: more pictures than it can look at, or too long ones.
    """
    pipeline = class_of(profile.family)
    if request.task not in pipeline.tasks:
        raise UnsupportedTask(model, request.task, pipeline.tasks)
    if len(request.images) > pipeline.max_input_images:
        most = f"{pipeline.max_input_images} image{'s' if pipeline.max_input_images > 1 else ''}"
        raise InvalidRequest(
            f"Invalid 'image': this model takes at most {most}, but got {len(request.images)} instead.",
            param="image",
            code="array_above_max_length",
        )
    if pipeline.edit and any(max(sides) > MAX_SOURCE_RATIO * min(sides) for sides in map(_sides, request.images)):
        raise UserImageError(
            f"Invalid 'image': this model looks at pictures whose longer side is at most {MAX_SOURCE_RATIO} times the shorter.",
            param="image",
        )


def _sides(upload: Upload) -> tuple[int, int]:
    return upload.width_px, upload.height_px


def resolve(
    request: ImageRequest,
    model: str,
    profile: Profile,
    *,
    embed_parameters: bool,
    masked: bool = False,
    loras: tuple[LoraUse, ...] = (),
    preset: Preset = Preset.FULL,
    image_prompt: bool = False,
) -> Resolved:
    """Make every choice the client left open. masked: whether the input has an area to repaint. loras: those asked for,
    found; tags that name them are not in the prompt any more. preset: the node's own, for requests that name none.
    image_prompt: whether a picture can take the place of the model's prompts.

    Raises: UserImageError: a size this model cannot make; InvalidRequest: n, steps, guidance or seed outside its range, a
    preset or a sampler it does not have.
    """
    if request.n > MAX_IMAGES:
        raise InvalidRequest(
            f"Invalid 'n': integer above maximum value. Expected a value <= {MAX_IMAGES}, but got {request.n} instead.",
            param="n",
            code="integer_above_max_value",
        )
    seeded = request.with_seed()
    assert seeded.seed is not None
    size = request.size or _size_of_input(request, profile) or profile.default_size
    drawn = size.rounded_up_to(profile.size_step_px)
    if fault := profile.size_fault(size) or profile.size_fault(drawn):
        raise UserImageError(f"Invalid size '{size}'. {fault[0].upper()}{fault[1:]}", param="size")
    steps, quality = _steps(request, profile)
    method, strength = _method(request, masked, profile, image_prompt=image_prompt)
    prompt = _prompt(request, method, profile)
    guidance = _guidance(request, profile, prompted=bool(prompt) or method is Method.IMAGE_PROMPT)
    true_cfg_scale = request.true_cfg_scale if profile.true_cfg == "beside" else None
    if true_cfg_scale is not None:
        _check_guidance("true_cfg_scale", true_cfg_scale, profile)
    guided = profile.guided(guidance, true_cfg_scale)
    negative_prompt = request.negative_prompt if request.negative_prompt is not None else profile.default_negative_prompt
    sent = (prompt, negative_prompt if guided else "")
    read = tuple(_read(text, profile) for text in sent)
    spec = RunSpec(
        model=model,
        prompt=read[0],
        negative_prompt=read[1],
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
        true_cfg_scale=true_cfg_scale,
        feather_px=request.mask_feather_px if masked else 0,
        previews=request.partial_images if request.stream else 0,
        preset=_preset(request, profile, preset, true_cfg_scale),
        loras=loras,
    )
    names = _without_effect(request, profile, guided=guided, method=method, masked=masked)
    if read != sent:
        names.append("prompt_weights")
    return Resolved(spec, request.ignoring(names).ignored)


def _read(prompt: str, profile: Profile) -> str:
    """The prompt as the model's encoder takes it. Raises: InvalidRequest: weights that cannot be read."""
    if not profile.prompt_weights:
        return without_weights(prompt)
    pieces_of(prompt)
    return prompt


def _size_of_input(request: ImageRequest, profile: Profile) -> Size | None:
    """`auto` with an uploaded picture: its own size, or the nearest that the model makes."""
    if not request.images:
        return None
    image = request.images[0]
    return profile.nearest_size(Size(image.width_px, image.height_px))


def _method(request: ImageRequest, masked: bool, profile: Profile, *, image_prompt: bool) -> tuple[Method, float | None]:
    pipeline = class_of(profile.family)
    if request.task is Task.GENERATION:
        return Method.TEXT_TO_IMAGE, None
    if pipeline.edit is not None and not (masked and pipeline.inpaint and len(request.images) == 1):
        # Such a model is told what to change. A mask it cannot read, or not beside several pictures, still says which
        # pixels stay.
        return Method.EDIT, None
    if request.task is Task.VARIATION:
        if image_prompt and request.strength is None:
            # A strength says how much of the picture itself stays, which is the other way.
            return Method.IMAGE_PROMPT, None
        usual, method = profile.variation_strength, Method.IMAGE_TO_IMAGE
    elif masked:
        usual, method = profile.inpaint_strength, Method.INPAINT
    else:
        faithful = request.input_fidelity is InputFidelity.HIGH
        usual, method = profile.faithful_strength if faithful else profile.edit_strength, Method.IMAGE_TO_IMAGE
    return method, usual if request.strength is None else request.strength


def usual_strength(profile: Profile, *, image_prompt: bool) -> dict[str, float]:
    """What `_method` takes where a request does not say, as `ModelStatus.usual_strength`."""
    pipeline = class_of(profile.family)
    told = {"masked": profile.inpaint_strength} if pipeline.edit is None or pipeline.inpaint else {}
    if pipeline.edit is None:
        # Where a picture takes the place of the prompt, a variation without a strength is drawn from noise.
        told |= {str(Task.EDIT): profile.edit_strength, "faithful": profile.faithful_strength}
        told |= {str(Task.VARIATION): 1.0 if image_prompt else profile.variation_strength}
    return told


def _prompt(request: ImageRequest, method: Method, profile: Profile) -> str:
    """The text the model sees. A variation comes with none."""
    if request.task is not Task.VARIATION:
        return profile.rendered(request.prompt)
    return VARIATION_PROMPT if method is Method.EDIT else ""


def _sampler(request: ImageRequest, profile: Profile) -> Sampler:
    if request.sampler is None:
        return profile.sampler
    samplers = SAMPLERS if class_of(profile.family).takes_samplers else (profile.sampler,)
    if request.sampler not in samplers:
        known = ", ".join(map(repr, samplers))
        raise InvalidRequest(f"Invalid 'sampler': this model has {known}, but got {request.sampler[:64]!r}.", param="sampler")
    return cast("Sampler", request.sampler)


def _preset(request: ImageRequest, profile: Profile, usual: Preset, true_cfg_scale: float | None) -> Preset:
    """The preset asked for, else the profile's, else the node's where the model has it."""
    available = {Preset.FULL, *profile.presets}
    chosen = usual_preset(profile, usual) if request.preset is None else request.preset
    if chosen not in available:
        known = ", ".join(repr(each.value) for each in Preset if each in available)
        raise InvalidRequest(f"Invalid 'preset': this model has {known}, but got {chosen.value!r}.", param="preset")
    if chosen is not Preset.FULL and (true_cfg_scale or 0) > 1:
        # Their denoiser then runs twice a step, and not all pipelines tell the cache which of the two it is.
        if request.preset is None:
            return Preset.FULL
        raise InvalidRequest("Invalid 'preset': this model has only 'full' beside a true_cfg_scale above 1.", param="preset")
    return chosen


def usual_preset(profile: Profile, usual: Preset) -> Preset:
    """The profile's own preset, else the node's where the model has it."""
    chosen = profile.default_preset if profile.default_preset is not Preset.FULL else usual
    return chosen if chosen in profile.presets else Preset.FULL


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


def _guidance(request: ImageRequest, profile: Profile, *, prompted: bool) -> float:
    name = "true_cfg_scale" if _by_true_cfg(request, profile) else "guidance_scale"
    wanted: float | None = getattr(request, name)
    if wanted is None and profile.takes_guidance and not prompted:
        # Without a prompt there is nothing to be guided towards.
        return max(1.0, profile.min_guidance)
    if wanted is None or not profile.takes_guidance:
        guidance = profile.default_guidance
        if request.style is Style.NATURAL and profile.natural_guidance is not None:
            guidance = min(guidance, profile.natural_guidance)
        return guidance
    _check_guidance(name, wanted, profile)
    return wanted


def _by_true_cfg(request: ImageRequest, profile: Profile) -> bool:
    """Whether the guidance is said by its other name, which is the more exact one."""
    return profile.true_cfg == "guidance" and request.true_cfg_scale is not None


def _check_guidance(name: str, wanted: float, profile: Profile) -> None:
    if not profile.min_guidance <= wanted <= profile.max_guidance:
        raise InvalidRequest(
            f"Invalid {name!r}: this model takes {profile.min_guidance:g} to {profile.max_guidance:g}, but got {wanted:g}.",
            param=name,
        )


def _without_effect(request: ImageRequest, profile: Profile, *, guided: bool, method: Method, masked: bool) -> list[str]:
    """Names of fields that were sent and changed nothing."""
    names = []
    if request.negative_prompt and not guided:
        names.append("negative_prompt")
    if request.guidance_scale is not None and (not profile.takes_guidance or _by_true_cfg(request, profile)):
        names.append("guidance_scale")
    if request.true_cfg_scale is not None and profile.true_cfg == "none":
        names.append("true_cfg_scale")
    if request.strength is not None and method is Method.EDIT:
        names.append("strength")
    if request.style is not None and (profile.natural_guidance is None or request.guidance_scale is not None):
        names.append("style")
    if request.quality is not Quality.AUTO and request.num_inference_steps is not None:
        names.append("quality")
    if request.output_compression is not None and request.output_format is OutputFormat.PNG:
        names.append("output_compression")
    if request.input_fidelity is not None and (method is not Method.IMAGE_TO_IMAGE or request.strength is not None):
        names.append("input_fidelity")
    if request.mask_feather_px and not masked:
        names.append("mask_feather_px")
    if request.partial_images and not request.stream:
        names.append("partial_images")
    return names
