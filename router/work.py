"""How much work a request is, before a node has seen it: the same that the node will take it for."""

from typing import Any

from common.images_api import ImageRequest, InputFidelity, Preset, Quality, Size, Task
from common.node_api import ModelStatus, work_words
from router.costs import bucket_of, kind_of
from router.placement import Ask

PRIOR_STEPS = 30
PRIOR_SIDE_PX = 1024


def ask_of(
    request: ImageRequest, model: str, status: ModelStatus | None, *, loras: frozenset[str], extras: frozenset[str]
) -> Ask:
    """What placement is asked. status: what some node says of the model; None while none has said anything."""
    size, usual = size_of(request, status), Preset.FULL if status is None else status.usual_preset
    return Ask(
        model,
        str(request.task),
        work_units(request, status),
        loras,
        size.pixels,
        extras,
        pictures=request.n,
        kind=kind_of(work_words(request, usual), bucket_of(size.pixels)),
    )


def work_units(request: ImageRequest, status: ModelStatus | None) -> float:
    """Megapixel-steps of a request: width x height / 1e6 x steps x n, with the model's defaults where it names none."""
    size, steps = size_of(request, status), _steps(request, status)
    one = _drawn_px(size, status) / 1e6 * _made(steps, _strength(request, status))
    if request.upscale is not None and (strength := request.upscale.second_pass) is not None:
        larger = Size(round(size.width_px * request.upscale.by), round(size.height_px * request.upscale.by))
        one += _drawn_px(larger, status) / 1e6 * _made(steps, strength)
    return one * request.n


def size_of(request: ImageRequest, status: ModelStatus | None) -> Size:
    """Of one picture of a request, with the size of its input or the model's default where it names none."""
    if request.size is not None:
        return request.size
    if request.images:
        return Size(request.images[0].width_px, request.images[0].height_px)
    width, _, height = str(_told(status).get("default_size") or "").partition("x")
    known = width.isdigit() and height.isdigit()
    return Size(int(width), int(height)) if known else Size(PRIOR_SIDE_PX, PRIOR_SIDE_PX)


def _steps(request: ImageRequest, status: ModelStatus | None) -> int:
    if request.num_inference_steps is not None:
        return request.num_inference_steps
    if status is not None and request.quality is not Quality.AUTO and request.quality in status.quality_steps:
        return status.quality_steps[request.quality]
    return int(_told(status).get("default_steps") or PRIOR_STEPS)


def _strength(request: ImageRequest, status: ModelStatus | None) -> float | None:
    """The share of the steps that is made; None for all of them."""
    if status is None or request.task is Task.GENERATION:
        return None
    usual, kind = status.usual_strength, str(request.task)
    if request.mask is not None:
        kind = "masked"
    elif request.task is Task.EDIT and request.input_fidelity is InputFidelity.HIGH:
        kind = "faithful"
    if kind not in usual:
        return None
    return usual[kind] if request.strength is None else request.strength


def _made(steps: int, strength: float | None) -> int:
    return steps if strength is None else min(int(steps * strength), steps)


def _drawn_px(size: Size, status: ModelStatus | None) -> int:
    step_px = int(_told(status).get("size_step_px") or 1)
    return size.rounded_up_to(step_px).pixels


def _told(status: ModelStatus | None) -> dict[str, Any]:
    return status.capabilities if status is not None else {}
