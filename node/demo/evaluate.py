"""What the checker thinks of sampled pictures: the figures on the model card.

Every function takes a loaded pipeline and returns plain numbers, so that a test can ask for a few pictures of what the
card says of hundreds.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from node.demo import architecture, checker, distill
from node.demo.captions import all_of, caption
from node.demo.checker import Verdict
from node.demo.world import COLOURS, SHAPES, Drawing, Scene, Thing, draw, held_out_scene, lay_out, training_scene

SIDE_PX = 256
STEPS = 20
GUIDANCE = 2.5
FEW_STEPS = 4
BATCH = 8
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
ASPECTS = (*(field.name for field in fields(Verdict)), "all_right")


@dataclass(frozen=True, slots=True)
class Asked:
    """A caption and the scene it stands for."""

    scene: Scene
    caption: str


@dataclass(frozen=True, slots=True)
class Painted:
    """Pictures and what they cost, all pictures together."""

    pictures: list[Image.Image]
    denoising_s: float
    decoding_s: float


def held_out_captions(count: int, seed: int = 0) -> list[Asked]:
    """Captions that say all of scenes never drawn in training."""
    rng = random.Random(f"evaluation {seed}")
    scenes = (all_of(held_out_scene(rng)) for _ in range(count))
    return [Asked(scene, caption(scene, rng)) for scene in scenes]


def use_few_steps(pipeline: Any, folder: Path) -> None:
    """Turn a loaded pipeline into the four-step one."""
    from diffusers import LCMScheduler

    pipeline.load_lora_weights(folder, adapter_name=distill.ADAPTER, local_files_only=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, original_inference_steps=distill.TEACHER_STEPS)


def paint(
    pipeline: Any,
    captions: Sequence[str],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    width_px: int = SIDE_PX,
    height_px: int = SIDE_PX,
    first_seed: int = 0,
) -> Painted:
    """Paint captions in batches of eight; picture i has seed first_seed + i."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    denoising_s = decoding_s = 0.0
    for at in range(0, len(captions), BATCH):
        some = list(captions[at : at + BATCH])
        began = time.perf_counter()
        latents = pipeline(
            some,
            width=width_px,
            height=height_px,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(first_seed + at + number) for number in range(len(some))],
            output_type="latent",
        ).images
        denoised = time.perf_counter()
        pictures += decode(pipeline, latents)
        denoising_s += denoised - began
        decoding_s += time.perf_counter() - denoised
    return Painted(pictures, denoising_s, decoding_s)


@torch.no_grad()
def decode(pipeline: Any, latents: torch.Tensor) -> list[Image.Image]:
    """(B, 4, h, w) -> pictures, as the pipeline does it."""
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return pictures


def judge(asked: Sequence[Asked], pictures: Sequence[Image.Image]) -> list[Verdict]:
    return [checker.compare(one.scene, checker.look(picture)) for one, picture in zip(asked, pictures, strict=True)]


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Part of the pictures right in each aspect, 0..1."""
    return {name: round(sum(getattr(one, name) for one in verdicts) / len(verdicts), 4) for name in ASPECTS}


def prompt_following(pipeline: Any, count: int, **how: Any) -> tuple[dict[str, Any], list[Image.Image]]:
    """Shares of right pictures on held-out captions: all, one thing, two things, in Japanese."""
    asked = held_out_captions(count)
    painted = paint(pipeline, [one.caption for one in asked], **how)
    verdicts = judge(asked, painted.pictures)
    groups = {
        "all": verdicts,
        "one_thing": [v for one, v in zip(asked, verdicts, strict=True) if one.scene.relation is None],
        "two_things": [v for one, v in zip(asked, verdicts, strict=True) if one.scene.relation],
        "japanese": [v for one, v in zip(asked, verdicts, strict=True) if not one.caption.isascii()],
    }
    figures: dict[str, Any] = {name: shares(some) for name, some in groups.items() if some}
    figures["pictures"] = count
    return figures, painted.pictures


def speed(guided: Any, few_steps: Any, count: int) -> dict[str, float]:
    """Seconds a picture, in turns of one batch each, so that a busy machine slows both alike."""
    captions = [one.caption for one in held_out_captions(count)]
    seconds = dict.fromkeys(("guided", "few_steps", "decoding"), 0.0)
    paint(few_steps, captions[:1], steps=1, guidance=1.0)
    for at in range(0, count, BATCH):
        slow = paint(guided, captions[at : at + BATCH])
        fast = paint(few_steps, captions[at : at + BATCH], steps=FEW_STEPS, guidance=1.0)
        seconds["guided"] += slow.denoising_s / count
        seconds["few_steps"] += fast.denoising_s / count
        seconds["decoding"] += (slow.decoding_s + fast.decoding_s) / (2 * count)
    return {name: round(value, 4) for name, value in seconds.items()}


@dataclass(frozen=True, slots=True)
class Repaint:
    """A drawn picture, the part of it to repaint (255 in the mask), and what must then be seen in the whole."""

    picture: Image.Image
    mask: Image.Image
    asked: Asked


def repaints(count: int, seed: int = 0) -> Iterator[Repaint]:
    """Edits by mask: the thing becomes another thing, or a second one is put beside it."""
    rng = random.Random(f"repaint {seed}")
    while count > 0:
        drawing = lay_out(training_scene(rng), rng)
        if drawing.scene.relation:
            yield _second_thing_again(drawing, rng)
        else:
            yield _another_thing(drawing, rng)
        count -= 1


def _another_thing(drawing: Drawing, rng: random.Random) -> Repaint:
    (old,), (mark,) = drawing.scene.things, drawing.marks
    colour = rng.choice([name for name in COLOURS if name not in (old.colour, drawing.scene.ground)])
    new = Thing(rng.choice(SHAPES), colour, old.size, old.place)
    wanted = Scene((new,), drawing.scene.ground)
    return _repaint(drawing, mark.x, mark.y, Asked(wanted, caption(wanted, rng)))


def _second_thing_again(drawing: Drawing, rng: random.Random) -> Repaint:
    kept, old = all_of(drawing.scene).things
    colour = rng.choice([name for name in COLOURS if name not in (old.colour, kept.colour, drawing.scene.ground)])
    wanted = Scene((kept, Thing(rng.choice(SHAPES), colour, old.size)), drawing.scene.ground, drawing.scene.relation)
    mark = drawing.marks[1]
    return _repaint(drawing, mark.x, mark.y, Asked(wanted, caption(wanted, rng)))


def _repaint(drawing: Drawing, x: float, y: float, asked: Asked) -> Repaint:
    """The mask is the quarter of the picture around a spot, kept inside it."""
    half = SIDE_PX // 4 + 8
    left, top = (min(max(0, round(at * SIDE_PX) - half), SIDE_PX - 2 * half) for at in (x, y))
    mask = Image.new("L", (SIDE_PX, SIDE_PX), 0)
    mask.paste(255, (left, top, left + 2 * half, top + 2 * half))
    return Repaint(draw(drawing, SIDE_PX, SIDE_PX), mask, asked)


def masked_edits(pipeline: Any, count: int) -> tuple[dict[str, Any], list[Image.Image]]:
    """Shares of right pictures after repainting inside a mask and putting the old pixels back outside."""
    from diffusers import StableDiffusionInpaintPipeline

    painter = StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    edits = list(repaints(count))
    pictures = []
    for number, edit in enumerate(edits):
        inside = painter(
            edit.asked.caption,
            image=edit.picture,
            mask_image=edit.mask,
            width=SIDE_PX,
            height=SIDE_PX,
            strength=1.0,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        pictures.append(Image.composite(inside, edit.picture, edit.mask))
    return {**shares(judge([edit.asked for edit in edits], pictures)), "pictures": count}, pictures


def distance_by_strength(pipeline: Any, count: int) -> dict[str, float]:
    """Mean absolute difference (0..255) from the input, by img2img strength, asked for another held-out scene."""
    from diffusers import StableDiffusionImg2ImgPipeline

    painter = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    rng = random.Random("strength")
    inputs = [draw(lay_out(training_scene(rng), rng), SIDE_PX, SIDE_PX) for _ in range(count)]
    captions = [one.caption for one in held_out_captions(count, seed=1)]
    distances = {}
    for strength in STRENGTHS:
        outputs = painter(
            captions,
            image=inputs,
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(number) for number in range(count)],
        ).images
        distances[str(strength)] = round(_mean_difference(inputs, outputs), 2)
    return distances


def _mean_difference(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> float:
    pairs = zip(first, second, strict=True)
    return float(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))


def checker_error(count: int, side_px: int = SIDE_PX) -> float:
    """Part of drawn scenes in which the checker finds anything wrong."""
    rng = random.Random("checker")
    drawings = [lay_out(held_out_scene(rng) if rng.random() < 0.5 else training_scene(rng), rng) for _ in range(count)]
    wrong = sum(not checker.compare(one.scene, checker.look(draw(one, side_px, side_px))).all_right for one in drawings)
    return wrong / count


@torch.no_grad()
def autoencoder_figures(vae: Any, count: int, side_px: int = SIDE_PX) -> dict[str, float]:
    """Shares of drawn scenes that are still right after encoding and decoding, and the mean difference (0..255)."""
    from node.demo.train_autoencoder import to_pictures, to_tensor

    rng = random.Random("autoencoder")
    drawings = [lay_out(held_out_scene(rng), rng) for _ in range(count)]
    drawn = [draw(one, side_px, side_px) for one in drawings]
    device = next(vae.parameters()).device
    decoded = [to_pictures(vae(to_tensor([picture], device)).sample)[0] for picture in drawn]
    verdicts = [checker.compare(one.scene, checker.look(seen)) for one, seen in zip(drawings, decoded, strict=True)]
    return {**shares(verdicts), "difference": round(_mean_difference(drawn, decoded), 3)}


def all_figures(folder: Path, adapter: Path | None, *, count: int, out: Path) -> dict[str, Any]:
    """Everything the model card states, measured in one run; sheets of the pictures go to `out`."""
    from node.demo.train_autoencoder import sheet

    out.mkdir(parents=True, exist_ok=True)
    pipeline = architecture.load(folder)
    figures: dict[str, Any] = {"checker_error": checker_error(4 * count), "threads": torch.get_num_threads()}
    figures["autoencoder"] = autoencoder_figures(pipeline.vae, count // 2)
    figures["prompt_following"], pictures = prompt_following(pipeline, count)
    sheet(pictures[:48], columns=8).save(out / "prompt_following.png")
    figures["masked_edits"], pictures = masked_edits(pipeline, count // 4)
    sheet(pictures[:48], columns=8).save(out / "masked_edits.png")
    figures["distance_by_strength"] = distance_by_strength(pipeline, max(4, count // 25))
    if adapter is not None:
        fast = architecture.load(folder)
        use_few_steps(fast, adapter)
        figures["few_steps"], pictures = prompt_following(fast, count, steps=FEW_STEPS, guidance=1.0)
        sheet(pictures[:48], columns=8).save(out / "few_steps.png")
        figures["seconds_per_picture"] = speed(pipeline, fast, max(BATCH, count // 8))
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures
