"""Step caches on a denoiser, for the length of one picture: put on before it, taken off behind it, with all they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, ModelHook

from node.presets import StepCache

WHOLE_AT_FIRST = 3
"""Steps of `taylor` that are computed in any case: the first ones decide what is where, and give the line its slope."""
_CLOCK, _HELD = "aquatint_clock", "aquatint_held"


@contextmanager
def cached_steps(denoiser: Any, cache: StepCache | None) -> Iterator[None]:
    """Skip parts of some forward passes within the block, which makes one picture. None computes every step in full."""
    if cache is None:
        yield
    elif cache.cache == "deep":
        assert cache.every is not None
        with _deep(denoiser, cache.every):
            yield
    else:
        # The context names which forward pass of a step it is: pipelines that make two of them say so themselves.
        denoiser.enable_cache(_config(cache))
        try:
            with denoiser.cache_context("only"):
                yield
        finally:
            denoiser.disable_cache()


def _config(cache: StepCache) -> Any:
    if cache.cache == "first-block":
        return FirstBlockCacheConfig(threshold=cache.threshold)
    return TaylorSeerCacheConfig(
        cache_interval=cache.every,
        disable_cache_before_step=WHOLE_AT_FIRST,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


@contextmanager
def _deep(unet: Any, every: int) -> Iterator[None]:
    """Compute the blocks below the first and the last one at every n-th pass; else their last outputs stand.

    The skip connections carry the fresh outer features past them, which is why a UNet bears this and a plain stack of
    blocks does not. What the deep blocks are given in between is of no use to anyone, and not computed either.
    """
    clock = _Clock(every)
    deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    HookRegistry.check_if_exists_or_initialize(unet).register_hook(clock, _CLOCK)
    for block in deep:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(_Held(clock), _HELD)
    try:
        yield
    finally:
        for block in deep:
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(_HELD, recurse=False)
        HookRegistry.check_if_exists_or_initialize(unet).remove_hook(_CLOCK, recurse=False)


class _Clock(ModelHook):  # type: ignore[misc]
    """Counts the forward passes of the whole UNet."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self._passes = 0
        self.whole = True

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.whole = self._passes % self._every == 0
        self._passes += 1
        return args, kwargs


class _Held(ModelHook):  # type: ignore[misc]
    """Gives a block's last output again unless the pass is a whole one."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock
        self._last: Any = None

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if self._clock.whole:
            self._last = self.fn_ref.original_forward(*args, **kwargs)
        return self._last
