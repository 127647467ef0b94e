"""Runs safetensors checkpoints through diffusers.

The pictures of a run that must be exact are made one after another, each with its own generator on the CPU. A batched
call would not give the same bits: with sliced decoding SD 1.5 is equal on a CPU, but SDXL differs by 1e-6 and GPU kernels
by more, and such a seed must give the same picture alone and beside others. The prompt is encoded once for all of them.
Other runs share passes (`together.py`), or, of some families, single steps (`stepping/`).
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import torch
from PIL import Image

from common.errors import AquatintError
from common.images_api import Size
from node.checkpoints import Layout
from node.engines.adapters import Adapters
from node.engines.base import (
    EngineFailed,
    Entrance,
    LoadOrder,
    Made,
    Member,
    Method,
    OnPreview,
    OnStep,
    OutOfDeviceMemory,
    RunCancelled,
    RunSpec,
)
from node.engines.control_nets import ControlNets
from node.engines.families import calls_of
from node.engines.image_prompting import ImagePrompting
from node.engines.offloading import back_to_main_memory, place
from node.engines.previews import Previews, Watching
from node.engines.prompt_cache import PromptCache
from node.engines.prompts import read_prompt
from node.engines.samplers import make_sampler
from node.engines.step_caches import cached_steps
from node.engines.stepping.families import steps_of
from node.engines.stepping.loop import StepLoop, Studio
from node.engines.tiny_decoding import TinyDecoding
from node.engines.together import Together
from node.engines.tuned import Tuned
from node.engines.upscaling import Upscaling
from node.masks import Canvas, cut_to, kept_outside
from node.offload import Offload
from node.pipeline_classes import class_of
from node.safetensors_header import CheckpointRefused
from node.tuning import USUAL, Tuning

_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    # What oneDNN, which computes convolutions on CPUs, says when it gets none.
    "could not create a primitive",
    "could not create a memory",
)
"""torch has a class for CUDA only; on CPUs and MPS RuntimeError is raised with one of these."""
MAX_ERROR_CHARS = 300


class DiffusersEngine:
    """See node.engines.base.SteppingEngine."""

    interruptible = True

    def __init__(
        self,
        device: str,
        tuning: Tuning = USUAL,
        *,
        compile_backend: str | Callable[..., Any] = "inductor",
        decode_beside: bool = False,
    ) -> None:
        """compile_backend: of torch.compile. decode_beside: whether the device has room for a decode beside steps."""
        self._device = torch.device(device)
        self._loaded: dict[str, tuple[LoadOrder, Any]] = {}
        self._others: dict[tuple[str, Method], Any] = {}
        """Pipelines of other methods over the same components: no weights of their own."""
        self._adapters: dict[str, Adapters] = {}
        self._control_nets: dict[str, ControlNets] = {}
        self._image_prompting: dict[str, ImagePrompting] = {}
        self._tuning = tuning
        self._compile_backend = compile_backend
        self._tuned: dict[str, Tuned] = {}
        self._upscaling = Upscaling(self._device)
        self._tiny_decoding = TinyDecoding(self._device)
        self._prompts = PromptCache(self._device)
        self._decode_beside = ThreadPoolExecutor(1, "decode") if decode_beside else None
        # cuDNN may otherwise pick a kernel that adds in another order each time: same seed, other bits.
        torch.backends.cudnn.deterministic = True

    def load(self, order: LoadOrder) -> None:
        with _told_as_ours(f"Loading {order.model!r}", with_text=True):
            pipeline = _open(order)
            _require_weights(pipeline, order.model)
            place(pipeline, self._device, order.offload)
            pipeline.set_progress_bar_config(disable=True)
            denoiser = getattr(pipeline, class_of(order.checkpoint.family).denoiser)
            # Compiled blocks would hold on to weights that are on their way.
            tuning = self._tuning if order.offload is Offload.NONE else self._tuning.model_copy(update={"compile": "off"})
            tuned = Tuned(pipeline, denoiser, tuning, self._device.type, backend=self._compile_backend)
        self._tuned[order.model] = tuned
        self._prompts.forget(order.model)
        self._loaded[order.model] = (order, pipeline)
        self._adapters[order.model] = Adapters(order, pipeline, self._device)
        self._control_nets[order.model] = ControlNets(order, pipeline, self._device)
        self._image_prompting[order.model] = ImagePrompting(order, pipeline, self._device)

    def unload(self, model: str) -> None:
        if self._loaded.pop(model, None) is None:
            return
        del self._adapters[model], self._control_nets[model], self._image_prompting[model]
        self._tuned.pop(model).close()
        self._tiny_decoding.forget(model)
        self._prompts.forget(model)
        self._others = {key: pipeline for key, pipeline in self._others.items() if key[0] != model}
        self.free_caches()

    def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        if model in self._adapters:
            self._adapters[model].drop(sha256s)
            self.free_caches()

    def told(self) -> dict[str, dict[str, str]]:
        """By loaded model, what came of each setting of its tuning."""
        return {model: tuned.told for model, tuned in list(self._tuned.items())}

    def free_caches(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        _return_heap_to_the_system()

    def generate(self, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, on_preview: OnPreview) -> Made:
        if spec.model not in self._loaded:
            raise EngineFailed(f"The model {spec.model!r} is not loaded.", retryable=True)
        try:
            return self._made(spec, canvas, on_step, on_preview)
        except OutOfDeviceMemory:
            # Once more with every cache given back, and the autoencoder in tiles: at large sizes its last layers
            # need more than all of the denoising.
            vae = self._loaded[spec.model][1].vae
            if not hasattr(vae, "enable_tiling"):
                raise
        self.free_caches()
        vae.enable_tiling()
        try:
            return replace(self._made(spec, canvas, on_step, on_preview), vae_tiled=True)
        except OutOfDeviceMemory as error:
            message = error.message
        finally:
            vae.disable_tiling()
        # Behind the handler and anew, for an error in hand keeps the tensors of all its frames.
        self.free_caches()
        raise OutOfDeviceMemory(message)

    def generate_together(self, members: Sequence[Member], batch: int) -> Sequence[Made | AquatintError]:
        model = members[0].spec.model
        if model not in self._loaded:
            raise EngineFailed(f"The model {model!r} is not loaded.", retryable=True)
        order, pipeline = self._loaded[model]
        together = Together(
            order,
            pipeline,
            at_work=lambda spec: self._at_work(order, spec),
            alone=lambda each: self.generate(each.spec, None, each.on_step, each.on_preview),
            finish=lambda image, spec: cut_to(as_large_as(image, spec.drawn), spec.size),
            decode_previews=self._tiny_decoding.instead_of(calls_of(order.checkpoint.family).decode, order),
            free_caches=self.free_caches,
            prompts=self._prompts,
        )
        return together.made(members, batch)

    def generate_in_steps(self, spec: RunSpec, entrance: Entrance) -> None:
        model = spec.model
        if model not in self._loaded:
            raise EngineFailed(f"The model {model!r} is not loaded.", retryable=True)
        order, pipeline = self._loaded[model]
        steps, calls = steps_of(order.checkpoint.family, pipeline), calls_of(order.checkpoint.family)
        if steps is None:
            raise EngineFailed(f"Runs of {model!r} cannot come and go between steps.")
        studio = Studio(
            pipeline,
            steps,
            self._device,
            read=lambda spec: self._prompts.get(spec, None, lambda: read_prompt(order, pipeline, spec, None)),
            decode=calls.decode,
            decode_previews=self._tiny_decoding.instead_of(calls.decode, order),
            finish=lambda image, spec: cut_to(as_large_as(image, spec.drawn), spec.size),
            told_as_ours=lambda: _told_as_ours(f"Running {model!r}"),
            free_caches=self.free_caches,
            decode_beside=self._decode_beside,
        )
        with self._at_work(order, spec):
            StepLoop(studio, entrance).run()

    def _made(self, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, on_preview: OnPreview) -> Made:
        order, pipeline = self._loaded[spec.model]
        with self._at_work(order, spec) as lora_layers:

            def once(spec: RunSpec, canvas: Canvas | None, on_step: OnStep) -> Made:
                own = self._for_method(order, pipeline, spec.method)
                options = calls_of(order.checkpoint.family).sharing_options(pipeline)
                guided, guiding = self._control_nets[spec.model].guided(own, spec, options)
                decode = self._tiny_decoding.instead_of(calls_of(order.checkpoint.family).decode, order)
                with self._image_prompting[spec.model].prompted(spec, canvas) as prompting:
                    watching = Watching(on_preview, decode)
                    return _generate(order, guided, self._prompts, spec, canvas, on_step, watching, guiding | prompting)

            made = self._upscaling.made(order, spec, canvas, on_step, once)
            return replace(made, lora_layers=lora_layers)

    @contextmanager
    def _at_work(self, order: LoadOrder, spec: RunSpec) -> Iterator[dict[str, int]]:
        """Have in effect what a run wants of the loaded model; gives the layers that each LoRA changes."""
        adapters = self._adapters[spec.model].applied(spec.loras)
        running = self._tuned[spec.model].running(spec, order.profile.presets.get(spec.preset))
        try:
            with _told_as_ours(f"Running {spec.model!r}"), torch.no_grad(), adapters as lora_layers, running:
                yield lora_layers
        finally:
            if order.offload is Offload.MODEL:
                back_to_main_memory(self._loaded[order.model][1])

    def _for_method(self, order: LoadOrder, pipeline: Any, method: Method) -> Any:
        """The pipeline of a method, made of the loaded one's components."""
        if method in (Method.TEXT_TO_IMAGE, Method.IMAGE_PROMPT):
            return pipeline
        if (order.model, method) not in self._others:
            table = class_of(order.checkpoint.family)
            names = {Method.IMAGE_TO_IMAGE: table.image_to_image, Method.INPAINT: table.inpaint, Method.EDIT: table.edit}
            name = names[method]
            if name is None:
                raise EngineFailed(f"The model {order.model!r} has no pipeline for {method}.")
            if name == table.name:
                return pipeline
            options = calls_of(order.checkpoint.family).sharing_options(pipeline)
            made = getattr(diffusers, name)(**pipeline.components, **options)
            made.set_progress_bar_config(disable=True)
            self._others[order.model, method] = made
        return self._others[order.model, method]


def _generate(
    order: LoadOrder,
    pipeline: Any,
    prompts: PromptCache,
    spec: RunSpec,
    canvas: Canvas | None,
    on_step: OnStep,
    watching: Watching,
    guiding: dict[str, Any],
) -> Made:
    """guiding: arguments of the call beside those of its family."""
    began = time.perf_counter()
    calls = calls_of(order.checkpoint.family)
    prompt = prompts.get(spec, canvas, lambda: read_prompt(order, pipeline, spec, canvas))
    timings_s = {"encode": time.perf_counter() - began, "denoise": 0.0, "decode": 0.0}
    images, own_sampler = [], pipeline.scheduler
    inputs = calls.start(spec, canvas) | guiding
    denoiser = getattr(pipeline, class_of(order.checkpoint.family).denoiser)

    def finish(picture: Image.Image) -> Image.Image:
        cut = cut_to(as_large_as(picture, spec.drawn), spec.size)
        return cut if canvas is None else kept_outside(cut, canvas, feather_px=spec.feather_px)

    try:
        for index, seed in enumerate(spec.seeds):
            if canvas is not None and spec.forwards == 0:
                # Strength 0 asks for the input itself, which not even the autoencoder may touch.
                images.append(canvas.picture.copy())
                continue
            pipeline.scheduler = make_sampler(spec.sampler, own_sampler, spec.timestep_spacing)
            previews = Previews(spec, watching, finish) if index == 0 else None
            if previews is not None:
                previews.watch(pipeline.scheduler)
            clock = _StepClock(index, spec, on_step, previews)
            # SD3 takes in a picture that guides with random numbers of the process, whatever generator it is given.
            torch.manual_seed(seed)
            with cached_steps(denoiser, order.profile.presets.get(spec.preset)):
                picture = pipeline(
                    **prompt.arguments,
                    **inputs,
                    num_inference_steps=spec.steps,
                    **calls.guidance(spec),
                    generator=torch.Generator("cpu").manual_seed(seed),
                    callback_on_step_end=clock,
                    output_type="pil",
                ).images[0]
            clock.add_to(timings_s)
            images.append(finish(picture))
        sampler = type(pipeline.scheduler).__name__
    finally:
        pipeline.scheduler = own_sampler
    return Made(images, timings_s, prompt.tokens, prompt.truncated, sampler)


class _StepClock:
    """The callback of one picture: reports each step of the run, and tells denoising from decoding."""

    def __init__(self, index: int, spec: RunSpec, on_step: OnStep, previews: Previews | None) -> None:
        self._done_before = index * spec.forwards
        self._total = spec.forwards * len(spec.seeds)
        self._previews = previews
        self._on_step = on_step
        self._began = self._last_step = time.perf_counter()

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        self._last_step = time.perf_counter()
        # Solvers of higher order call back more often than there are steps.
        self._on_step(min(self._done_before + step + 1, self._total), self._total)
        if self._previews is not None:
            self._previews.after(pipeline, step + 1)
        return {}

    def add_to(self, timings_s: dict[str, float]) -> None:
        timings_s["denoise"] += self._last_step - self._began
        timings_s["decode"] += time.perf_counter() - self._last_step


def as_large_as(picture: Image.Image, size: Size) -> Image.Image:
    """The picture at another size: some pipelines draw large ones smaller than they are told."""
    shape = (size.width_px, size.height_px)
    return picture if picture.size == shape else picture.resize(shape, Image.Resampling.LANCZOS)


def _open(order: LoadOrder) -> Any:
    """The pipeline object, on the CPU. Only local safetensors, only the class our own table names."""
    checkpoint = order.checkpoint
    calls, table = calls_of(checkpoint.family), class_of(checkpoint.family)
    pipeline_class = getattr(diffusers, table.name)
    common: dict[str, Any] = {"dtype": getattr(torch, order.dtype), "local_files_only": True}
    if checkpoint.layout is Layout.FOLDER:
        given = calls.load_options | calls.own_components(checkpoint.path)
        return pipeline_class.from_pretrained(
            str(checkpoint.path), use_safetensors=True, variant=checkpoint.variant, **common, **given
        )
    assert checkpoint.config is not None, "a single file without configs is refused by its inspection"
    config = str(checkpoint.config)
    if table.transformer_files:
        (name,) = table.diffusers[table.denoiser]
        transformer = getattr(diffusers, name).from_single_file(
            str(checkpoint.path), config=config, subfolder=table.denoiser, **common
        )
        given = calls.load_options | calls.own_components(checkpoint.config) | {table.denoiser: transformer}
        return pipeline_class.from_pretrained(config, use_safetensors=True, variant=checkpoint.variant, **common, **given)
    return pipeline_class.from_single_file(str(checkpoint.path), config=config, **common, **calls.single_file_options)


def _require_weights(pipeline: Any, model: str) -> None:
    """Libraries leave parameters on the meta device, silently, when a file lacks them."""
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module) and any(p.is_meta for p in component.parameters()):
            raise EngineFailed(f"Loading {model!r}: its files hold no weights for parts of the {name}.")


@contextmanager
def _told_as_ours(what: str, *, with_text: bool = False) -> Iterator[None]:
    """Library errors as ours. Their texts are told for loads only: those of runs can hold the prompt."""
    try:
        yield
    except (RunCancelled, EngineFailed, OutOfDeviceMemory, CheckpointRefused):
        raise
    except Exception as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
        )
        if out_of_memory:
            raise OutOfDeviceMemory(f"{what}: the device is out of memory.") from error
        text = f" ({str(error)[:MAX_ERROR_CHARS]})" if with_text else ""
        raise EngineFailed(f"{what} failed: {type(error).__name__}{text}.") from error


def _return_heap_to_the_system() -> None:
    """glibc keeps freed gigabytes in its arenas otherwise; other systems have no such call."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
