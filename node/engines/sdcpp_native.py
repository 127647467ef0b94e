"""stable-diffusion.cpp through its C interface: the only file that touches the binding.

The binding's Python classes are passed by (version 0.4.7), for each of these ends or misleads the whole process:

- a load that failed is a NULL pointer it takes for a model, and closing that crashes;
- a callback given to one call is called in the next one too, when it is gone;
- quiet calls send file descriptors 1 and 2 of the whole process to /dev/null;
- `<lora:PATH:1>` in a prompt opens that path;
- negative seeds are drawn from ten thousand;
- pictures are never freed, and a picture that failed is read through a NULL pointer.

Its structures, constants and function signatures are used as they are. Callbacks are made once here and live as long as
the process. A context belongs to one thread.
"""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from stable_diffusion_cpp import stable_diffusion_cpp as sd

_SAMPLING_BEGINS = re.compile(rb"stable-diffusion\.cpp:\d+ *- generating image: ")
"""A line of the log. What is counted before it are tensors of a LoRA that is read, told by the same callback as steps."""
_LORA_APPLIED = re.compile(rb".*\((\d+) / \d+\) LoRA tensors have been applied, lora_file_path = (.*)")
_WARNING = 2
MAX_TOLD = 20
_OUT_OF_MEMORY_TEXTS = ("failed to allocate", "out of memory")
"""Of ggml's allocators of devices. Main memory that runs out aborts the process instead."""
_libc = ctypes.CDLL(None)
_libc.free.argtypes, _libc.free.restype = [ctypes.c_void_p], None
for _name, _structure in (("sd_ctx_params_init", sd.sd_ctx_params_t), ("sd_img_gen_params_init", sd.sd_img_gen_params_t)):
    # The binding leaves these out and fills structures by hand, with other values than the library's own.
    _function = getattr(sd._lib, _name)
    _function.argtypes, _function.restype = [ctypes.POINTER(_structure)], None


class NativeFailure(Exception):
    """The library said no; the text is its own, of a load only: lines about a run can hold its prompt."""

    def __init__(self, text: str, told: Sequence[str]) -> None:
        super().__init__(text)
        self.out_of_memory = any(words in line for words in _OUT_OF_MEMORY_TEXTS for line in told)


@dataclass(slots=True)
class Watch:
    """Who is told what while a native call is at work."""

    on_step: Callable[[int, int], None] | None = None
    """(step, steps) of the picture at work."""
    on_frame: Callable[[int, Image.Image], None] | None = None
    """(step, estimate) after the steps of `frames`; of any size."""
    frames: frozenset[int] = frozenset()
    frame_mode: int = 0
    told: list[str] = field(default_factory=list)
    """Warnings and errors."""
    lora_tensors: Counter[str] = field(default_factory=Counter)
    """By path: how many tensors of a LoRA had an effect."""
    sampling: bool = False
    error: BaseException | None = None
    """What a callback raised. Nothing can pass through native code; the caller raises it afterwards."""


_watch = Watch()


def _now(watch: Watch) -> None:
    """From here on the callbacks of this process are for `watch`."""
    global _watch
    _watch = watch


@sd.sd_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, data: Any) -> None:
    _watch.sampling = _watch.sampling or _SAMPLING_BEGINS.match(text) is not None
    if applied := _LORA_APPLIED.match(text.strip()):
        _watch.lora_tensors[os.fsdecode(applied[2])] += int(applied[1])
    if level >= _WARNING and len(_watch.told) < MAX_TOLD:
        _watch.told.append(text.decode("utf-8", "replace").strip())


@sd.sd_progress_callback  # type: ignore[untyped-decorator]
def _progress(step: int, steps: int, seconds: float, data: Any) -> None:
    try:
        if step and _watch.sampling and _watch.on_step is not None:
            _show_frame_after(step + 1)
            _watch.on_step(step, steps)
    except BaseException as error:
        _watch.error = _watch.error or error


@sd.sd_preview_callback  # type: ignore[untyped-decorator]
def _frame(step: int, count: int, frames: Any, is_noisy: bool, data: Any) -> None:
    try:
        if count and _watch.on_frame is not None and abs(step) in _watch.frames:
            _watch.on_frame(abs(step), _picture(frames[0]))
    except BaseException as error:
        _watch.error = _watch.error or error


def _show_frame_after(step: int) -> None:
    """Have the estimate of one step decoded or not: the library asks before each, and decoding takes its time."""
    wanted = step in _watch.frames
    sd.sd_set_preview_callback(_frame, _watch.frame_mode, 1, wanted, False, None)


sd.sd_set_log_callback(_log, None)
sd.sd_set_progress_callback(_progress, None)


def hide_gpus() -> None:
    """Make the library use the CPU, whatever it was built for. Before the first context only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture."""

    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    seed: int
    steps: int
    guidance: float
    """1 makes no second pass."""
    embedded_guidance: float
    """Of models that read it as a number."""
    method: int
    """One of SampleMethod; its count is the model's own."""
    schedule: int
    """One of Scheduler; its count is the method's own."""
    start: Image.Image | None = None
    """RGB of the same size to start from, and how much of the way from noise is made."""
    strength: float = 1.0
    repaint: Image.Image | None = None
    """L of the same size: white is made anew."""
    references: tuple[Image.Image, ...] = ()
    """RGB of any size to look at."""
    loras: tuple[tuple[str, float], ...] = ()
    """Paths of checked files, and weights: applied for this picture only."""


@dataclass(slots=True)
class Context:
    """A loaded model."""

    threads: int
    _pointer: Any = None
    _texts: list[bytes] = field(default_factory=list)

    def open(self, paths: Mapping[str, str]) -> None:
        """Load it. paths: by the library's own names, such as `diffusion_model_path`.

        Raises: NativeFailure, with the library's reasons.
        """
        params = sd.sd_ctx_params_t()
        sd._lib.sd_ctx_params_init(ctypes.byref(params))
        for name, path in paths.items():
            setattr(params, name, os.fsencode(path))
        params.vae_decode_only = False
        params.free_params_immediately = False
        params.n_threads = self.threads
        # Merged weights do not come back exactly when a LoRA leaves.
        params.lora_apply_mode = int(sd.LoraApplyMode.LORA_APPLY_AT_RUNTIME)
        watch = Watch()
        _now(watch)
        try:
            pointer = sd.new_sd_ctx(ctypes.byref(params))
        finally:
            _now(Watch())
        if not pointer:
            raise NativeFailure("; ".join(watch.told) or "no reason was given", watch.told)
        self._pointer = pointer

    def close(self) -> None:
        """Free it. Once, and only what was loaded: the library frees anything it is given."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            sd.free_sd_ctx(pointer)

    @property
    def own_method(self) -> int:
        """The sampling method the library takes for this model when none is asked for."""
        method: int = sd.sd_get_default_sample_method(self._pointer)
        return method

    def generate(self, job: Job, watch: Watch) -> Image.Image:
        """Make one picture.

        Raises: NativeFailure; afterwards, whatever a callback of `watch` raised.
        """
        params = sd.sd_img_gen_params_t()
        sd._lib.sd_img_gen_params_init(ctypes.byref(params))
        # What the structure points to must outlive the call.
        kept = [_fill(params, job), watch]
        _now(watch)
        try:
            _show_frame_after(1)
            made = sd.generate_image(self._pointer, ctypes.byref(params))
        finally:
            _now(Watch())
            del kept
        if not made:
            if watch.error is not None:
                raise watch.error
            raise NativeFailure("no picture was made", watch.told)
        try:
            if watch.error is not None:
                raise watch.error
            return _picture(made[0])
        finally:
            _libc.free(ctypes.cast(made[0].data, ctypes.c_void_p))
            _libc.free(ctypes.cast(made, ctypes.c_void_p))


def _fill(params: Any, job: Job) -> list[Any]:
    """Write a job into the library's structure; gives what it points to."""
    kept: list[Any] = []
    params.prompt = job.prompt.encode("utf-8", "replace")
    params.negative_prompt = job.negative_prompt.encode("utf-8", "replace")
    params.width, params.height, params.seed = job.width_px, job.height_px, job.seed
    params.sample_params.sample_steps = job.steps
    params.sample_params.sample_method, params.sample_params.scheduler = job.method, job.schedule
    params.sample_params.guidance.txt_cfg = job.guidance
    params.sample_params.guidance.distilled_guidance = job.embedded_guidance
    if job.start is not None:
        params.init_image, params.strength = _native(job.start, kept), job.strength
    if job.repaint is not None:
        params.mask_image = _native(job.repaint, kept)
    if job.references:
        references = (sd.sd_image_t * len(job.references))(*(_native(each, kept) for each in job.references))
        params.ref_images, params.ref_images_count = references, len(job.references)
        params.auto_resize_ref_image = True
        kept.append(references)
    if job.loras:
        loras = (sd.sd_lora_t * len(job.loras))(*(sd.sd_lora_t(False, weight, os.fsencode(path)) for path, weight in job.loras))
        params.loras, params.lora_count = loras, len(job.loras)
        kept.append(loras)
    return kept


def _native(image: Image.Image, kept: list[Any]) -> Any:
    content = image.tobytes()
    buffer = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
    kept.append(buffer)
    return sd.sd_image_t(image.width, image.height, len(image.getbands()), ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint8)))


def _picture(image: Any) -> Image.Image:
    content = ctypes.string_at(image.data, image.width * image.height * image.channel)
    return Image.frombytes("L" if image.channel == 1 else "RGB", (image.width, image.height), content).convert("RGB")
