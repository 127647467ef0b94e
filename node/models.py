"""The models this node can serve: each a checkpoint under a public name with the profile that fits it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.catalog import ModelFile
from common.images_api import Task
from common.logs import get_logger
from node.checkpoints import Checkpoint, Layout, inspect, scan
from node.engines.base import LoadOrder
from node.loras import DIFFUSERS_FILE, LoraFile, Loras, find_loras, inspect_lora
from node.pipeline_classes import class_of
from node.profile import Profile, choose_profile, profiles
from node.safetensors_header import CheckpointRefused

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
    checkpoint: Checkpoint
    profile: Profile
    created: int
    """Unix seconds: when its files were last changed."""
    loras: tuple[LoraFile, ...] = ()
    """Those made for its family, by name."""

    def dtype(self, device: str, wanted: str) -> str:
        """The number format it is loaded in. wanted: the setting; `auto` leaves it to the profile."""
        if wanted != "auto":
            return wanted
        return next(dtype for kind, dtype in self.profile.dtype.items() if kind == device)

    def load_order(self, device: str, wanted_dtype: str) -> LoadOrder:
        """What the worker is told."""
        places = tuple(each.place for each in self.loras)
        return LoadOrder(self.name, self.checkpoint, self.profile, self.dtype(device, wanted_dtype), places)

    @property
    def file(self) -> ModelFile:
        """Its weights on disk, for the catalog."""
        layout = "diffusers" if self.checkpoint.layout is Layout.FOLDER else "safetensors"
        return ModelFile(path=str(self.checkpoint.path), format=layout, size_bytes=self.checkpoint.stored_bytes)

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
            "loras": [{"name": each.name, "trigger_words": list(each.sidecar.trigger_words)} for each in self.loras],
        }


@dataclass(frozen=True, slots=True)
class Models:
    """All of them, by name, and what was refused."""

    by_name: dict[str, Model]
    refused: tuple[CheckpointRefused, ...] = ()
    loras: Loras = field(default_factory=lambda: Loras(()))

    def __iter__(self) -> Iterator[Model]:
        return iter(self.by_name.values())

    def get(self, name: str) -> Model | None:
        """The model of that name; None when there is none."""
        return self.by_name.get(name)

    @property
    def default(self) -> Model:
        """What a request without a model gets: the first by name."""
        return next(iter(self))


def find_models(roots: list[Path]) -> Models:
    """Scan the models folders; with nothing there, serve the demonstration checkpoint.

    Blocking: reads the headers of every file.
    """
    found, loras = scan(roots), find_loras(roots)
    for kind, refusals in (("checkpoint_refused", found.refused), ("lora_refused", loras.refused)):
        for refusal in refusals:
            log.warning(kind, path=str(refusal.path), reason=refusal.reason)
    models, refused = {}, [*found.refused, *loras.refused]
    for checkpoint in sorted(found.checkpoints, key=lambda each: each.name):
        try:
            models[checkpoint.name] = _model(checkpoint, loras)
        except ValueError as error:
            refused.append(CheckpointRefused(checkpoint.path, f"its sidecar: {error}"))
            log.warning("checkpoint_refused", path=str(checkpoint.path), reason=refused[-1].reason)
    if not models:
        own = inspect_lora(DEMO_FOLDER / DEMO_LORA / DIFFUSERS_FILE, root=DEMO_FOLDER, name=DEMO_LORA)
        loras = Loras([*loras, own], loras.refused)
        models[DEMO_MODEL] = _demo(loras)
    return Models(models, tuple(refused), loras)


def _model(checkpoint: Checkpoint, loras: Loras) -> Model:
    profile = choose_profile(checkpoint.family, traits=checkpoint.traits, sidecar=checkpoint.sidecar)
    created = int(checkpoint.path.stat().st_mtime)
    return Model(checkpoint.name, checkpoint, profile, created, loras.fitting(checkpoint.family))


def _demo(loras: Loras) -> Model:
    """The demonstration model that comes with the node."""
    checkpoint = inspect(DEMO_FOLDER, root=DEMO_FOLDER)
    created = int(DEMO_FOLDER.stat().st_mtime)
    return Model(DEMO_MODEL, checkpoint, profiles()["aquatint-demo"], created, loras.fitting(checkpoint.family))
