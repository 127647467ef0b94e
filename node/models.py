"""The models this node can serve: each one or more checkpoints under a public name, with the profile that fits them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.catalog import ModelFile
from common.errors import Unavailable
from common.images_api import Task
from common.logs import get_logger
from common.node_api import control_words, upscaler_words
from node.beside import Beside
from node.checkpoints import Checkpoint, inspect, scan
from node.choice import Choice, choose
from node.controls import ControlFile, Controls, find_controls
from node.engine_names import EXTRAS, EngineName, installed_engines
from node.engines.base import LoadOrder, RunSpec
from node.image_prompts import ImagePrompt, ImagePrompts, find_image_prompts
from node.loras import DIFFUSERS_FILE, LoraFile, Loras, find_loras, inspect_lora
from node.pipeline_classes import class_of
from node.profile import Profile, choose_profile, profiles
from node.safetensors_header import CheckpointRefused
from node.tiny_vaes import TinyVae, find_tiny_vaes
from node.upscalers import LATENT, UpscalerFile, Upscalers, find_upscalers

log = get_logger(__name__)

DEMO_FOLDER = Path(__file__).parent / "demo" / "checkpoint"
"""The trained demonstration checkpoint that comes with the node."""
DEMO_MODEL = "aquatint-demo"
DEMO_LORA = "few_step"
"""Its LoRA for four steps, in the folder of that name."""


@dataclass(frozen=True, slots=True)
class Model:
    """One public name and what stands behind it."""

    name: str
    checkpoints: tuple[Checkpoint, ...]
    """The same weights in other formats, sizes or for other engines. An engine for at least one of them is installed."""
    profile: Profile
    created: int
    """Unix seconds: when the first of its files was last changed."""
    engines: frozenset[EngineName] = field(default_factory=installed_engines)
    """What is installed."""
    loras: tuple[LoraFile, ...] = ()
    """Those made for its family, by name."""
    controls: tuple[ControlFile, ...] = ()
    """The same of ControlNets."""
    upscalers: tuple[UpscalerFile, ...] = ()
    """Upscaling models, where its engine has a use for them."""
    image_prompt: ImagePrompt | None = None
    """By what a picture takes the place of its prompts in variations."""
    tiny_vae: TinyVae | None = None
    """What draws its previews; None has its own autoencoder draw them."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The first that can be run: what all of them have in common can be read from it."""
        return next(each for each in self.checkpoints if each.engine in self.engines)

    def dtype(self, device: str, wanted: str) -> str:
        """The number format it is loaded in. wanted: the setting; `auto` leaves it to the profile."""
        if wanted != "auto":
            return wanted
        return next(dtype for kind, dtype in self.profile.dtype.items() if kind == device)

    def choice(self, device: str, wanted_dtype: str, budget_bytes: int | None) -> Choice:
        """Which of its checkpoints is loaded on a device, and why."""
        dtype = self.dtype(device, wanted_dtype)
        chosen = choose(self.checkpoints, engines=self.engines, device=device, dtype=dtype, budget_bytes=budget_bytes)
        assert chosen is not None
        return chosen

    def load_order(self, device: str, wanted_dtype: str, budget_bytes: int | None = None) -> LoadOrder:
        """What the worker is told."""
        chosen = self.choice(device, wanted_dtype, budget_bytes).checkpoint
        places = tuple(each.place for each in self.loras)
        prompt = () if self.image_prompt is None else self.image_prompt.places
        tiny = None if self.tiny_vae is None else self.tiny_vae.place
        controls, upscalers = (tuple(each.place for each in files) for files in (self.controls, self.upscalers))
        return LoadOrder(
            self.name, chosen, self.profile, self.dtype(device, wanted_dtype), places, controls, upscalers, prompt, tiny
        )

    def beside(self, spec: RunSpec, device: str, wanted_dtype: str) -> Beside:
        """What a run has on the device with the model."""
        dtype = self.dtype(device, wanted_dtype)
        used = {use.name for use in spec.controls if use.scale}
        upscaler = None if spec.upscale is None else spec.upscale.method
        nets = {
            "control": {each.name: each.memory_bytes(dtype) for each in self.controls if each.name in used},
            "image_prompt": {} if self.image_prompt is None else self.image_prompt.bytes_beside(dtype),
            "upscale": {each.name: each.memory_bytes for each in self.upscalers if each.name == upscaler},
        }
        if spec.image_prompt is None:
            del nets["image_prompt"]
        sizes = {each.name: each.memory_bytes(dtype) for each in self.loras}
        loras = {use.sha256: sizes[use.name] for use in spec.loras if use.scale}
        return Beside({kind: each for kind, each in nets.items() if each}, loras)

    @property
    def by_diffusers(self) -> bool:
        """Whether this node can run it by diffusers."""
        return EngineName.DIFFUSERS in self.engines & {each.engine for each in self.checkpoints}

    @property
    def upscaler_names(self) -> list[str]:
        """The ways its pictures can be made larger."""
        return [LATENT, *(each.name for each in self.upscalers)] if self.by_diffusers else []

    @property
    def extras(self) -> list[str]:
        """What a run of it may need and finds here, as a router asks for it."""
        names = [control_words(each.name, None) for each in self.controls]
        kinds = {control_words(None, each.kind) for each in self.controls if each.kind is not None}
        return [*names, *sorted(kinds), *map(upscaler_words, self.upscaler_names)]

    @property
    def files(self) -> list[ModelFile]:
        """Its weights on disk, for the catalog."""
        by_path = {each.path: each for each in self.checkpoints}
        return [
            ModelFile(path=str(path), format=each.format.value, size_bytes=each.stored_bytes) for path, each in by_path.items()
        ]

    @property
    def tasks(self) -> list[str]:
        """What it can be asked for."""
        return [task.value for task in Task if task in class_of(self.profile.family).tasks]

    @property
    def capabilities(self) -> dict[str, Any]:
        """Sizes and limits, for clients."""
        profile = self.profile
        return {
            "default_size": str(profile.default_size),
            "size_step_px": profile.size_step_px,
            "min_side_px": profile.min_side_px,
            "max_side_px": profile.max_side_px,
            "max_pixels": profile.max_pixels,
            "default_steps": profile.default_steps,
            "min_steps": profile.min_steps,
            "max_steps": profile.max_steps,
            "default_guidance": profile.default_guidance,
            "max_input_images": class_of(profile.family).max_input_images,
            "streaming": True,
            "negative_prompt": profile.takes_negative_prompt,
            "commercial_use": profile.commercial_use,
            "min_vram_bytes": profile.min_vram_bytes,
            "prompt_weights": profile.prompt_weights,
            "presets": {name.value: each.model_dump(mode="json") for name, each in profile.presets.items()},
            "default_preset": profile.default_preset.value,
            "loras": [{"name": each.name, "trigger_words": list(each.sidecar.trigger_words)} for each in self.loras],
            "controls": [each.shown() for each in self.controls],
            "upscalers": self.upscaler_names,
            "image_prompt": None if self.image_prompt is None else self.image_prompt.adapter.place.name,
            "previews_by": "its own autoencoder" if self.tiny_vae is None else self.tiny_vae.place.name,
        }


@dataclass(frozen=True, slots=True)
class Models:
    """All of them, by name, and what was refused."""

    by_name: dict[str, Model]
    refused: tuple[CheckpointRefused, ...] = ()
    loras: Loras = field(default_factory=lambda: Loras(()))
    controls: Controls = field(default_factory=Controls)
    upscalers: Upscalers = field(default_factory=Upscalers)
    image_prompts: ImagePrompts = field(default_factory=ImagePrompts)

    def __iter__(self) -> Iterator[Model]:
        return iter(self.by_name.values())

    def get(self, name: str) -> Model | None:
        """The model of that name; None when there is none."""
        return self.by_name.get(name)

    @property
    def default(self) -> Model:
        """What a request without a model gets: the first by name. Raises: Unavailable: there is none at all."""
        if not self.by_name:
            raise Unavailable("This node has no model to serve.", code="no_model")
        return next(iter(self))

    @property
    def main_engine(self) -> EngineName:
        """What the worker has ready at its start: diffusers, whose import takes longest, unless no model needs it."""
        installed = installed_engines()
        used = {each.engine for model in self for each in model.checkpoints} & installed
        only_sdcpp = (used or installed) == {EngineName.SDCPP}
        return EngineName.SDCPP if only_sdcpp else EngineName.DIFFUSERS


def find_models(roots: list[Path], engines: Collection[EngineName] | None = None) -> Models:
    """Scan the models folders; with nothing there, serve the demonstration checkpoint.

    engines: what is installed, looked for when absent. Blocking: reads the headers of every file.
    """
    installed = installed_engines() if engines is None else frozenset(engines)
    found, loras, controls, upscalers = scan(roots), find_loras(roots), find_controls(roots), find_upscalers(roots)
    tiny_vaes, prompts = find_tiny_vaes(roots), find_image_prompts(roots)
    models, refused = dict[str, Model](), list(found.refused)
    for name in sorted({checkpoint.name for checkpoint in found.checkpoints}):
        checkpoints = tuple(checkpoint for checkpoint in found.checkpoints if checkpoint.name == name)
        try:
            models[name] = _model(name, checkpoints, installed, loras)
        except CheckpointRefused as fault:
            refused.append(fault)
    extras = (*loras.refused, *controls.refused, *upscalers.refused, *tiny_vaes.refused, *prompts.refused)
    for kind, refusals in (("checkpoint_refused", refused), ("extra_refused", extras)):
        for refusal in refusals:
            log.warning(kind, path=str(refusal.path), reason=refusal.reason)
    if not models and EngineName.DIFFUSERS in installed:
        own = inspect_lora(DEMO_FOLDER / DEMO_LORA / DIFFUSERS_FILE, root=DEMO_FOLDER, name=DEMO_LORA)
        loras = Loras([*loras, own], loras.refused)
        models[DEMO_MODEL] = _demo(loras)
    for name, model in models.items():
        if model.by_diffusers:
            larger = tuple(upscalers.by_name.values())
            family = model.profile.family
            fitting, tiny = controls.fitting(family), tiny_vaes.fitting(family)
            # Which engine runs it must not be open: how a variation is made is settled before that is.
            only = {each.engine for each in model.checkpoints} & installed == {EngineName.DIFFUSERS}
            prompt = prompts.fitting(family) if only else None
            models[name] = replace(model, controls=fitting, upscalers=larger, image_prompt=prompt, tiny_vae=tiny)
    return Models(models, (*refused, *extras), loras, controls, upscalers, prompts)


def _model(name: str, checkpoints: tuple[Checkpoint, ...], installed: frozenset[EngineName], loras: Loras) -> Model:
    """Raises: CheckpointRefused: no engine for it is installed, or its sidecar asks for what does not go together."""
    first = next((each for each in checkpoints if each.engine in installed), None)
    if first is None:
        engine = checkpoints[0].engine
        raise CheckpointRefused(checkpoints[0].path, f"needs the engine {engine}: pip install '{EXTRAS[engine]}'")
    try:
        profile = choose_profile(first.family, traits=first.traits, sidecar=first.sidecar)
    except ValueError as error:
        raise CheckpointRefused(first.path, f"its sidecar: {error}") from None
    created = int(first.path.stat().st_mtime)
    return Model(name, checkpoints, profile, created, installed, loras.fitting(first.family))


def _demo(loras: Loras) -> Model:
    """The demonstration model that comes with the node."""
    checkpoint = inspect(DEMO_FOLDER, root=DEMO_FOLDER)
    created, fitting = int(DEMO_FOLDER.stat().st_mtime), loras.fitting(checkpoint.family)
    return Model(DEMO_MODEL, (checkpoint,), profiles()["aquatint-demo"], created, loras=fitting)
