"""Memory that runs out at any point of a load or a run: one more try in tiles, then a named error; the next is right."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from common.images_api import Size
from node.engines.base import OutOfDeviceMemory
from node.models import Models
from tests.node.bench import Bench, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "z-image")
PARTS = {"sd15": ("text_encoder", "unet", "vae.decoder"), "z-image": ("text_encoder", "transformer", "vae.decoder")}
PARTS["sdxl"] = (*PARTS["sd15"], "text_encoder_2")


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(Models({name: tiny_models.by_name[name] for name in NAMES}))


@contextmanager
def memory_runs_out(bench: Bench, name: str, part: str, fails: Callable[[int], bool]) -> Iterator[list[int]]:
    """In the calls of a part for whose number, counted from 0, `fails` says so. Gives the numbers of the calls."""
    # Nothing read before, so that every part is called.
    bench.engine._prompts.forget(name)
    module = bench.engine._loaded[name][1]
    for step in part.split("."):
        module = getattr(module, step)
    numbers, calls = itertools.count(), list[int]()

    def run_out(*given: object) -> None:
        calls.append(next(numbers))
        if fails(calls[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = module.register_forward_pre_hook(run_out)
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in NAMES for part in PARTS[name]])
def test_memory_that_runs_out_once_anywhere_costs_time_and_no_picture(bench: Bench, name: str, part: str):
    whole = bench.make(name)
    with memory_runs_out(bench, name, part, lambda call: False) as calls:
        bench.make(name)
    assert calls

    for at in calls:
        with memory_runs_out(bench, name, part, lambda call, at=at: call == at):  # type: ignore[misc]
            made = bench.make(name)
        assert made.vae_tiled
        # So small a picture is a single tile: the same pixels.
        assert pixels(made) == pixels(whole)
    assert not bench.make(name).vae_tiled


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_does_not_suffice_is_told_and_the_next_picture_is_right(bench: Bench, name: str):
    whole = bench.make(name)
    for part in PARTS[name]:
        with (
            memory_runs_out(bench, name, part, lambda call: True) as calls,
            pytest.raises(OutOfDeviceMemory, match="out of memory"),
        ):
            bench.make(name)
        assert len(calls) == 2
        assert pixels(bench.make(name)) == pixels(whole)


def test_a_large_picture_made_in_tiles_is_nearly_the_one_made_whole(bench: Bench):
    size = Size(192, 192)
    whole = bench.make("sd15", drawn=size, size=size)
    with memory_runs_out(bench, "sd15", "vae.decoder", lambda call: call == 0):
        tiled = bench.make("sd15", drawn=size, size=size)

    assert tiled.vae_tiled
    assert tiled.images[0].size == whole.images[0].size == (192, 192)


@pytest.mark.parametrize("at", range(3))
def test_memory_that_runs_out_while_loading_leaves_the_others_as_they_were(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, at: int
):
    before = pixels(bench.make("sdxl"))
    bench.engine.unload("sd15")
    moves, move = itertools.count(), torch.nn.Module.to

    def run_out(module: torch.nn.Module, *given: object, **more: object) -> torch.nn.Module:
        if next(moves) == at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(module, *given, **more)  # type: ignore[arg-type]

    order = bench.models.by_name["sd15"].load_order("cpu", "float32")
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "to", run_out)
        with pytest.raises(OutOfDeviceMemory, match="Loading 'sd15'"):
            bench.engine.load(order)

    assert pixels(bench.make("sdxl")) == before
    bench.engine.load(order)
    assert bench.make("sd15").images
