"""The engines of one worker: each is imported when the first checkpoint for it comes, for torch alone takes seconds."""

from collections.abc import Callable, Sequence

from common.errors import AquatintError
from common.imports import uncollected
from node.engine_names import EngineName
from node.engines.base import (
    Engine,
    EngineFailed,
    Entrance,
    LoadOrder,
    Made,
    Member,
    OnPreview,
    OnStep,
    RunSpec,
    SharingEngine,
    SteppingEngine,
)
from node.masks import Canvas
from node.tuning import USUAL, Tuning
from node.worker.device import cores


class Engines:
    """Hands each order to the engine of its model. See node.engines.base.Engine for what the methods do."""

    def __init__(self, device: str, threads: int, tuning: Tuning = USUAL) -> None:
        self._makers: dict[EngineName, Callable[[], Engine]] = {
            EngineName.DIFFUSERS: lambda: _diffusers(device, threads, tuning),
            EngineName.SDCPP: lambda: _sdcpp(device, threads),
        }
        self._made: dict[EngineName, Engine] = {}
        self._by_model: dict[str, Engine] = {}

    def ready(self, name: EngineName) -> Engine:
        """The engine, made now if it was not yet."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def told(self) -> dict[str, dict[str, str]]:
        """By loaded model, how it computes; of the engines that have a choice."""
        told: dict[str, dict[str, str]] = {}
        for engine in list(self._made.values()):
            told |= engine.told()
        return told

    def interruptible(self, model: str) -> bool:
        """Whether a run of this model ends where `on_step` raises."""
        engine = self._by_model.get(model)
        return engine is None or engine.interruptible

    def load(self, order: LoadOrder) -> None:
        engine = self.ready(order.checkpoint.engine)
        engine.load(order)
        self._by_model[order.model] = engine

    def unload(self, model: str) -> None:
        engine = self._by_model.pop(model, None)
        if engine is not None:
            engine.unload(model)

    def free_caches(self) -> None:
        """Give back what is kept for runs to come, of every engine."""
        for engine in self._made.values():
            engine.free_caches()

    def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        engine = self._by_model.get(model)
        if engine is not None:
            engine.drop_loras(model, sha256s)

    def generate(self, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, on_preview: OnPreview) -> Made:
        return self._of(spec.model).generate(spec, canvas, on_step, on_preview)

    def generate_together(self, members: Sequence[Member], batch: int) -> Sequence[Made | AquatintError]:
        engine = self._of(members[0].spec.model)
        if not isinstance(engine, SharingEngine):
            raise EngineFailed("This engine makes one picture after another.")
        return engine.generate_together(members, batch)

    def generate_in_steps(self, spec: RunSpec, entrance: Entrance) -> None:
        engine = self._of(spec.model)
        if not isinstance(engine, SteppingEngine):
            raise EngineFailed("With this engine nobody can come between steps.")
        engine.generate_in_steps(spec, entrance)

    def _of(self, model: str) -> Engine:
        engine = self._by_model.get(model)
        if engine is None:
            raise EngineFailed(f"The model {model!r} is not loaded.", retryable=True)
        return engine


def _diffusers(device: str, threads: int, tuning: Tuning) -> Engine:
    with uncollected():
        import diffusers
        import torch
        import transformers

        from node.engines.diffusers_engine import DiffusersEngine

    # Below "error" both libraries quote the part of a prompt that was cut off.
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return DiffusersEngine(device, tuning, decode_beside=device == "cuda" or (device == "cpu" and 2 * threads <= cores()))


def _sdcpp(device: str, threads: int) -> Engine:
    from node.engines.sdcpp_engine import SdcppEngine

    return SdcppEngine(device, threads)
