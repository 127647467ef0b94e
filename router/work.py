"""How much work a request is, before a node has seen it: the same that the node will take it for."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from common.images_api import ImageRequest, InputFidelity, Preset, Quality, Size, Task
from common.node_api import ModelStatus, work_words
from router.costs import bucket_of, kind_of
from router.placement import Ask

PRIOR_STEPS = 30
PRIOR_SIDE_PX = 1024
NOTHING: Mapping[str, Any] = MappingProxyType({})


def ask_of(
    request: ImageRequest, model: str, status: ModelStatus | None, *, loras: frozenset[str], extras: frozenset[str]
) -> Ask:
    """What placement is asked. status: what some node says of the model; None while none has said anything."""
    told = NOTHING if status is None else status.capabilities
    size, usual = _size(request, told), Preset.FULL if status is None else status.usual_preset
    pixels = size.pixels
    return Ask(
        model,
        str(request.task),
        _work_units(request, status, told, size),
        loras,
        pixels,
        extras,
        pictures=request.n,
        kind=kind_of(work_words(request, usual), bucket_of(pixels)),
    )


def _work_units(request: ImageRequest, status: ModelStatus | None, told: Mapping[str, Any], size: Size) -> float:
    """Megapixel-steps of a request: width x height / 1e6 x steps x n, with the model's defaults where it names none."""
    steps = _steps(request, status, told)
    one = _drawn_px(size, told) / 1e6 * _made(steps, _strength(request, status))
    if request.upscale is not None and (strength := request.upscale.second_pass) is not None:
        larger = Size(round(size.width_px * request.upscale.by), round(size.height_px * request.upscale.by))
        one += _drawn_px(larger, told) / 1e6 * _made(steps, strength)
    return one * request.n


def _size(request: ImageRequest, told: Mapping[str, Any]) -> Size:
    """Of one picture of a request, with the size of its input or the model's default where it names none."""
    if request.size is not None:
        return request.size
    if request.images:
        return Size(request.images[0].width_px, request.images[0].height_px)
    return _default_size(str(told.get("default_size") or ""))


@lru_cache(maxsize=256)
def _default_size(told: str) -> Size:
    width, _, height = told.partition("x")
    known = width.isdigit() and height.isdigit()
    return Size(int(width), int(height)) if known else Size(PRIOR_SIDE_PX, PRIOR_SIDE_PX)


def _steps(request: ImageRequest, status: ModelStatus | None, told: Mapping[str, Any]) -> int:
    if request.num_inference_steps is not None:
        return request.num_inference_steps
    if status is not None and request.quality is not Quality.AUTO and request.quality in status.quality_steps:
        return status.quality_steps[request.quality]
    return int(told.get("default_steps") or PRIOR_STEPS)


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


def _drawn_px(size: Size, told: Mapping[str, Any]) -> int:
    return _rounded_px(size.width_px, size.height_px, int(told.get("size_step_px") or 1))


@lru_cache(maxsize=1024)
def _rounded_px(width_px: int, height_px: int, step_px: int) -> int:
    return Size(width_px, height_px).rounded_up_to(step_px).pixels
