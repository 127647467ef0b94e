"""Runs GGUF and safetensors files through stable-diffusion.cpp, without torch.

A native call cannot be stopped, so a run that is cancelled ends with its process (`interruptible`), and the node starts
another. The pictures of one run are made one after another, each from its own seed.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from stable_diffusion_cpp import stable_diffusion_cpp as sd

from node.checkpoints import Checkpoint
from node.engines.base import EngineFailed, LoadOrder, LoraMismatch, Made, Method, OnPreview, OnStep, OutOfDeviceMemory, RunSpec
from node.engines.sdcpp_native import Context, Job, NativeFailure, Watch, hide_gpus
from node.loras import inspect_lora
from node.masks import OPAQUE, Canvas, cut_to, kept_outside, padded

MAX_PROMPT_BYTES = 4000
"""The library's prompt parser calls itself for each byte, and overflows the stack somewhere above four times this."""
MAX_REASON_CHARS = 300
_OWN_METHOD, _OWN_SCHEDULE = int(sd.SampleMethod.SAMPLE_METHOD_COUNT), int(sd.Scheduler.SCHEDULER_COUNT)
_METHODS: dict[str, tuple[int, int]] = {
    "checkpoint": (_OWN_METHOD, _OWN_SCHEDULE),
    "euler": (int(sd.SampleMethod.EULER_SAMPLE_METHOD), _OWN_SCHEDULE),
    "euler-a": (int(sd.SampleMethod.EULER_A_SAMPLE_METHOD), _OWN_SCHEDULE),
    "dpmpp-2m-karras": (int(sd.SampleMethod.DPMPP2M_SAMPLE_METHOD), int(sd.Scheduler.KARRAS_SCHEDULER)),
    "ddim": (int(sd.SampleMethod.DDIM_TRAILING_SAMPLE_METHOD), _OWN_SCHEDULE),
    "lcm": (int(sd.SampleMethod.LCM_SAMPLE_METHOD), _OWN_SCHEDULE),
}
_COMMANDS = re.compile(r"<lora:[^>]*>|<sd_cpp_extra_args>.*?(?:</sd_cpp_extra_args>|$)", re.DOTALL | re.IGNORECASE)
_WEIGHT = re.compile(r":([+-]?[.\d]+)\)", re.ASCII)
_SOUND_WEIGHT = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{0,9})?|\.\d{1,9})", re.ASCII)


class SdcppEngine:
    """See node.engines.base.Engine."""

    interruptible = False

    def __init__(self, device: str, threads: int) -> None:
        if device == "cpu":
            hide_gpus()
        self._threads = threads
        self._loaded: dict[str, tuple[LoadOrder, Context]] = {}

    def load(self, order: LoadOrder) -> None:
        context = Context(self._threads)
        try:
            context.open(_paths(order.checkpoint))
        except NativeFailure as failure:
            raise _ours(f"Loading {order.model!r}", failure) from None
        self._loaded[order.model] = (order, context)

    def told(self) -> dict[str, dict[str, str]]:
        return {}

    def unload(self, model: str) -> None:
        loaded = self._loaded.pop(model, None)
        if loaded is not None:
            loaded[1].close()

    def free_caches(self) -> None:
        """There are none."""

    def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        """None stays: each run reads its own."""

    def generate(self, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, on_preview: OnPreview) -> Made:
        if spec.model not in self._loaded:
            raise EngineFailed(f"The model {spec.model!r} is not loaded.", retryable=True)
        if canvas is None and spec.method is not Method.TEXT_TO_IMAGE:
            raise EngineFailed(f"The method {spec.method} needs an input.")
        order, context = self._loaded[spec.model]
        prompt, cut_off = safe_prompt(spec.prompt)
        timings_s = {"encode": 0.0, "denoise": 0.0, "decode": 0.0}
        images: list[Image.Image] = []
        loras = _loras(order, spec)
        layers = dict.fromkeys((use.name for use in spec.loras), 0)
        for index, seed in enumerate(spec.seeds):
            if canvas is not None and spec.forwards == 0:
                # Strength 0 asks for the input itself, which not even the autoencoder may touch.
                images.append(canvas.picture.copy())
                continue
            clock = _Clock(index, spec, on_step)
            watch = Watch(clock.step)
            if index == 0 and spec.previews:
                _watch_frames(watch, order.checkpoint, spec, canvas, on_preview)
            try:
                job = replace(_job(order, spec, prompt, seed, canvas), loras=tuple(loras.values()))
                picture = context.generate(job, watch)
            except NativeFailure as failure:
                raise _ours(f"Running {spec.model!r}", failure) from None
            for name, (path, _) in loras.items():
                # Two tensors a layer, down and up.
                layers[name] = watch.lora_tensors[path] // 2
                if not layers[name]:
                    raise LoraMismatch(f"Of the LoRA {name!r}, no layer can be applied to the model.")
            clock.add_to(timings_s)
            images.append(_finished(picture, spec, canvas))
        method = _METHODS[spec.sampler][0]
        name = sd.SampleMethod(context.own_method if method == _OWN_METHOD else method).name
        return Made(images, timings_s, 0, cut_off, name.removesuffix("_SAMPLE_METHOD").lower(), layers)


class _Clock:
    """Reports the steps of one picture as steps of the run, and tells encoding from denoising from decoding."""

    def __init__(self, index: int, spec: RunSpec, on_step: OnStep) -> None:
        self._done_before = index * spec.forwards
        self._total = spec.forwards * len(spec.seeds)
        self._on_step = on_step
        self._began = time.perf_counter()
        self._first = self._last = 0.0

    def step(self, step: int, steps: int) -> None:
        """One forward pass is done."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._on_step(min(self._done_before + step, self._total), self._total)

    def add_to(self, timings_s: dict[str, float]) -> None:
        """Add this picture's phases. The first step counts as encoding: where it began is not told."""
        timings_s["encode"] += self._first - self._began
        timings_s["denoise"] += self._last - self._first
        timings_s["decode"] += time.perf_counter() - self._last


def _ours(what: str, failure: NativeFailure) -> EngineFailed | OutOfDeviceMemory:
    if failure.out_of_memory:
        return OutOfDeviceMemory(f"{what}: the device is out of memory.")
    return EngineFailed(f"{what} failed: stable-diffusion.cpp says: {str(failure)[:MAX_REASON_CHARS]}")


def safe_prompt(prompt: str) -> tuple[str, bool]:
    """A client's text as native code may see it, and whether its end was cut off.

    Taken out: commands of sd.cpp's programs, which name files (until none is left: one may be hidden in another), NUL,
    and weights that its parser cannot read as a number, which would end the process.
    """
    raw = prompt.replace("\0", " ").encode("utf-8", "replace")
    text = raw[:MAX_PROMPT_BYTES].decode("utf-8", "ignore")
    before = None
    while text != before:
        before = text
        text = _WEIGHT.sub(lambda found: found[0] if _SOUND_WEIGHT.fullmatch(found[1]) else ")", _COMMANDS.sub("", text))
    return text, len(raw) > MAX_PROMPT_BYTES


def _loras(order: LoadOrder, spec: RunSpec) -> dict[str, tuple[str, float]]:
    """By name: the file, checked again, and how strongly. One of scale 0 is left out, for it changes nothing."""
    places = {place.name: place for place in order.loras}
    found = {}
    for use in spec.loras:
        if use.scale:
            if use.name not in places:
                raise EngineFailed(f"The LoRA {use.name!r} is not known to the worker.", retryable=True)
            place = places[use.name]
            found[use.name] = (str(inspect_lora(place.path, root=place.root, name=place.name).path), use.scale)
    return found


def _paths(checkpoint: Checkpoint) -> dict[str, str]:
    """The files by the library's names."""
    paths = {"model_path" if checkpoint.whole else "diffusion_model_path": str(checkpoint.path)}
    for component, path in checkpoint.components.items():
        paths["taesd_path" if component == "tae" else f"{component}_path"] = str(path)
    return paths


def _job(order: LoadOrder, spec: RunSpec, prompt: str, seed: int, canvas: Canvas | None) -> Job:
    method, schedule = _METHODS[spec.sampler]
    # Some models were taught their guidance as an input; true guidance is then beside it, off unless asked for.
    embedded = order.profile.true_cfg == "beside"
    job = Job(
        prompt=prompt,
        negative_prompt=safe_prompt(spec.negative_prompt)[0],
        width_px=spec.drawn.width_px,
        height_px=spec.drawn.height_px,
        seed=seed,
        steps=spec.steps,
        guidance=max(1.0, (spec.true_cfg_scale or 1.0) if embedded else spec.guidance),
        embedded_guidance=spec.guidance if embedded else 1.0,
        method=method,
        schedule=schedule,
    )
    return job if canvas is None else _with_input(job, spec, canvas)


def _with_input(job: Job, spec: RunSpec, canvas: Canvas) -> Job:
    if spec.method is Method.EDIT:
        return replace(job, references=canvas.sources or (canvas.picture,))
    start = padded(canvas, spec.drawn)
    # The library makes int(steps * strength) + 1 steps; half a step off keeps rounding away from the edge.
    strength = (spec.forwards - 0.5) / spec.steps
    repaint = None
    if spec.method is Method.INPAINT:
        repaint = start.repaint or Image.new("L", start.picture.size, OPAQUE)
    return replace(job, start=start.picture, strength=strength, repaint=repaint)


def _finished(picture: Image.Image, spec: RunSpec, canvas: Canvas | None) -> Image.Image:
    if picture.size != (spec.drawn.width_px, spec.drawn.height_px):
        raise EngineFailed(f"A picture of {picture.width}x{picture.height} was drawn where {spec.drawn} was asked for.")
    cut = cut_to(picture, spec.size)
    return cut if canvas is None else kept_outside(cut, canvas, feather_px=spec.feather_px)


def _watch_frames(watch: Watch, checkpoint: Checkpoint, spec: RunSpec, canvas: Canvas | None, on_preview: OnPreview) -> None:
    """Previews: decoded where there is a tiny autoencoder, which is quick; else projected, eight times smaller."""
    due = spec.preview_steps
    drawn = (spec.drawn.width_px, spec.drawn.height_px)

    def on_frame(step: int, picture: Image.Image) -> None:
        whole = picture if picture.size == drawn else picture.resize(drawn, Image.Resampling.BICUBIC)
        on_preview(due[step], _finished(whole, spec, canvas))

    watch.on_frame, watch.frames = on_frame, frozenset(due)
    watch.frame_mode = int(sd.Preview.PREVIEW_TAE if "tae" in checkpoint.components else sd.Preview.PREVIEW_PROJ)
