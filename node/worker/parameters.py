"""How a picture was made: in the text form A1111 began and most programs read, and whole, as JSON."""

import json

from common.images_api import Preset
from node.engines.base import RunSpec
from node.hashes import AUTOV2_DIGITS


def parameters_text(spec: RunSpec, seed: int) -> str:
    """The `parameters` text of one picture. No version and no date: the same request must give the same bytes."""
    tags = "".join(f" <lora:{each.name}:{each.scale:g}>" for each in spec.loras)
    lines = [f"{spec.prompt}{tags}".lstrip()]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(
        f"Steps: {spec.steps}, Sampler: {spec.sampler}, CFG scale: {spec.guidance:g}, Seed: {seed}, "
        f"Size: {spec.drawn}, Model: {spec.model}, "
        + (f"Denoising strength: {spec.strength:g}, " if spec.strength is not None else "")
        + (f"Preset: {spec.preset}, " if spec.preset is not Preset.FULL else "")
        + _upscale(spec)
        + _control_nets(spec)
        + _lora_hashes(spec)
        + "Version: aquatint"
    )
    return "\n".join(lines)


def _upscale(spec: RunSpec) -> str:
    """As A1111 writes its second pass, or else its way of enlarging what is finished."""
    use = spec.upscale
    if use is None:
        return ""
    if use.strength is None:
        return f"Postprocess upscale by: {use.by:g}, Postprocess upscaler: {json.dumps(use.method)}, "
    return f"Denoising strength: {use.strength:g}, Hires upscale: {use.by:g}, Hires upscaler: {json.dumps(use.method)}, "


def _control_nets(spec: RunSpec) -> str:
    """As A1111's extension writes them."""
    return "".join(
        f"ControlNet {number}: "
        + json.dumps(
            f"Module: {use.preprocess}, Model: {use.name}, Weight: {use.scale:g}, "
            f"Guidance Start: {use.start:g}, Guidance End: {use.end:g}"
        )
        + ", "
        for number, use in enumerate(spec.controls)
    )


def _lora_hashes(spec: RunSpec) -> str:
    """As A1111 writes them, with the digits (AutoV2) that CivitAI finds a file by."""
    if not spec.loras:
        return ""
    return "Lora hashes: " + json.dumps(", ".join(f"{each.name}: {each.sha256[:AUTOV2_DIGITS]}" for each in spec.loras)) + ", "


def recipe_json(spec: RunSpec, seed: int, batch: int = 1) -> str:
    """Everything to make one picture again, as ASCII JSON (EXIF holds nothing else).

    batch: pictures in its pass. Made alone it is the same but for rounding, so the number is there only above 1.
    """
    left_out = ("seeds", "previews", "embed_parameters")
    values = {name: value for name, value in spec.to_json().items() if name not in left_out and value not in (None, [])}
    shared = {"batch": batch} if batch > 1 else {}
    return json.dumps(values | {"seed": seed} | shared, sort_keys=True)
