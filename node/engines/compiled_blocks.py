"""Compiled blocks of a denoiser: compiled beside the runs, used once they are ready, and never waited for.

A block that repeats is compiled once for all its copies, by a thread of its own on a twin of the first that a run shows it,
and kept on disk by torch's own cache. A run with shapes that are not ready takes the block as it is. Compiled and plain
results differ by rounding, so the bytes of a seed may differ before and after.

Runs with LoRAs take the blocks as they are. Compiled code is bound to the names, ranks and layers of the LoRAs within a
block, and diffusers' `enable_lora_hotswap` (0.42.1) loosens that for one LoRA in the place of another only: it refuses
those with layers of text encoders, with layers that the first did not change, and with ranks above one that must be told
before the first is loaded. A request may name eight of any kind, and each combination would take a minute of a core for
runs of seconds.
"""

import copy
import queue
import sys
import threading
import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from diffusers.hooks import HookRegistry, ModelHook

MAX_SHAPES = 32
"""Of one model; beyond them blocks run plain, for each may cost a minute of a CPU core."""
_HOOK = "aquatint_compiled"


@dataclass(frozen=True, slots=True)
class _Order:
    """One call to compile for."""

    shape: Hashable
    twin: Any
    args: Any
    kwargs: Any


class CompiledBlocks:
    """The repeated blocks of one denoiser."""

    def __init__(self, denoiser: Any, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """backend: of torch.compile."""
        names = set(getattr(denoiser, "_repeated_blocks", None) or ())
        self._blocks = [module for module in denoiser.modules() if type(module).__name__ in names]
        self._backend = backend
        self._functions: dict[type, Any] = {}
        self._structures: dict[int, Hashable] = {}
        """By id of a block; empty while blocks run plain."""
        self._seen: set[Hashable] = set()
        self._ready: set[Hashable] = set()
        self._failed: str | None = None
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        # Beyond it torch runs plain, and says nothing.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
        for block in self._blocks:
            HookRegistry.check_if_exists_or_initialize(block).register_hook(_MayBeCompiled(self), _HOOK)
        threading.Thread(target=self._compile, daemon=True).start()

    @property
    def state(self) -> str:
        """For people, and for whoever waits until it does not begin with "warming" any more."""
        if not self._blocks:
            return "off: nothing repeats in this denoiser"
        if self._failed is not None:
            return f"off: it failed ({self._failed})"
        seen, ready = len(self._seen), len(self._ready)
        return f"warming up: {ready} of {seen} shapes ready" if ready < seen else f"on: {ready} shapes ready"

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the length of a run whose blocks are themselves: without LoRAs and without caches within them."""
        # Anew for each run: LoRAs that were loaded in between lie in the blocks even while they are switched off.
        self._structures = {id(block): _structure(block) for block in self._blocks}
        try:
            yield
        finally:
            self._structures = {}

    def close(self) -> None:
        """Let go of the denoiser, and end the thread."""
        for block in self._blocks:
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(_HOOK, recurse=False)
        self._blocks = []
        self._orders.put(None)

    def forward(self, block: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward pass of one block."""
        structure = self._structures.get(id(block))
        if structure is None or self._failed is not None:
            return plain(*args, **kwargs)
        shape = (structure, _shape(args), _shape(kwargs))
        if shape in self._ready:
            try:
                return self._functions[type(block)](block, *args, **kwargs)
            except Exception as error:
                self._fail(error)
        elif shape not in self._seen and len(self._seen) < MAX_SHAPES:
            self._seen.add(shape)
            self._orders.put(_Order(shape, _twin(block), _copied(args), _copied(kwargs)))
        return plain(*args, **kwargs)

    def _compile(self) -> None:
        """The thread: one order after another, for ever."""
        while (order := self._orders.get()) is not None:
            if self._failed is not None or not self._blocks:
                continue
            kind = type(order.twin)
            try:
                if kind not in self._functions:
                    self._functions[kind] = torch.compile(_own(kind.forward), backend=self._backend)
                # The gradient mode belongs to a thread, and compiled code to a gradient mode.
                with torch.no_grad():
                    self._functions[kind](order.twin, *order.args, **order.kwargs)
                self._ready.add(order.shape)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = type(error).__name__
        print(f"compiling failed, blocks run plain: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)


class _MayBeCompiled(ModelHook):  # type: ignore[misc]
    def __init__(self, blocks: CompiledBlocks) -> None:
        super().__init__()
        self._blocks = blocks

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self._blocks.forward(module, self.fn_ref.original_forward, args, kwargs)


def _own(function: Any) -> Any:
    """The same function over a code object of its own, for that is what torch keeps compiled code with: of each model apart,
    and gone with it."""
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _structure(block: Any) -> Hashable:
    """What compiled code of a block is bound to, beside its class: which parts it has."""
    return type(block), tuple((name, tuple(each.shape), each.dtype) for name, each in block.named_parameters())


def _shape(value: Any) -> Hashable:
    """What compiled code is bound to in an argument: of tensors not their numbers."""
    if torch.is_tensor(value):
        return tuple(value.shape), value.dtype, value.stride()
    if isinstance(value, dict):
        return tuple((name, _shape(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_shape, value))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return type(value).__name__


def _copied(value: Any) -> Any:
    """The argument with tensors of its own, for those of a run are used again."""
    if torch.is_tensor(value):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _twin(block: Any) -> Any:
    """A block of its own with the same weights in memory, without our hook: what a run changes in the other passes it by."""
    shared = [*block.parameters(), *block.buffers()]
    hooks = [block.__dict__["forward"], block.__dict__["_diffusers_hook"]]
    twin = copy.deepcopy(block, {id(each): each for each in (*shared, *hooks)})
    del twin.__dict__["forward"], twin.__dict__["_diffusers_hook"]
    return twin
