"""How an engine computes: none of it changes a picture beyond rounding, and all of it is told."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from common.images_api import Preset
from node.engines.base import LoraUse
from node.engines.diffusers_engine import DiffusersEngine
from node.likeness import psnr_db
from node.models import Models, find_models
from node.tuning import Tuning
from tests.checkpoints.loras import random_lora, write_lora
from tests.checkpoints.tiny import unet
from tests.node.bench import Bench, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

CLOSE_DB = 60.0
"""One level of difference in one of sixteen values."""


class Backend:
    """torch.compile's own tracing, without the minutes of a C++ compiler; knows how often its code ran."""

    def __init__(self) -> None:
        self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.ran += 1
            return graph(*args)

        return run


@contextmanager
def tuned(models: Models, name: str, tuning: Tuning, backend: Any = None) -> Iterator[Bench]:
    """An engine with one model."""
    bench = Bench(Models({}))
    bench.models = models
    bench.engine = DiffusersEngine("cpu", tuning, compile_backend=backend or Backend())
    bench.engine.load(models.by_name[name].load_order("cpu", "float32"))
    yield bench
    bench.engine.unload(name)


def warmed(bench: Bench, name: str) -> str:
    """What is told once nothing is being compiled any more."""
    while (state := bench.engine.told()[name]["compile"]).startswith("warming"):
        pass
    return state


@pytest.mark.parametrize("name", ["sd15", "z-image"])
def test_runs_are_plain_until_their_blocks_are_compiled_and_the_pictures_stay(tiny_models: Models, name: str):
    backend = Backend()
    with tuned(tiny_models, name, Tuning()) as bench:
        (plain,) = bench.make(name).images
    with tuned(tiny_models, name, Tuning(compile="on"), backend) as bench:
        (first,) = bench.make(name).images
        assert warmed(bench, name).startswith("on: ")
        before = backend.ran
        (second,) = bench.make(name).images

    assert first.tobytes() == plain.tobytes()
    assert backend.ran > before
    assert psnr_db(plain, second) > CLOSE_DB


def test_another_shape_is_compiled_beside_the_run_that_shows_it(tiny_models: Models):
    from common.images_api import Size

    with tuned(tiny_models, "sd15", Tuning(compile="on")) as bench:
        bench.make("sd15")
        before = warmed(bench, "sd15")
        bench.make("sd15", drawn=Size(96, 64), size=Size(96, 64))
        after = warmed(bench, "sd15")

    assert int(after.split()[1]) > int(before.split()[1])


def test_where_compiling_fails_blocks_run_plain_and_the_status_says_why(tiny_models: Models, capfd: pytest.CaptureFixture[str]):
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    with tuned(tiny_models, "sd15", Tuning()) as bench:
        plain = pixels(bench.make("sd15"))
    with tuned(tiny_models, "sd15", Tuning(compile="on"), broken) as bench:
        made = [pixels(bench.make("sd15"))]
        state = warmed(bench, "sd15")
        made.append(pixels(bench.make("sd15")))

    assert made == [plain, plain]
    assert state.startswith("off: it failed (")
    assert "compiling failed, blocks run plain" in capfd.readouterr().err


def test_compiled_code_that_fails_in_a_run_does_not_fail_the_run(tiny_models: Models):
    ran: list[int] = []

    def breaks_later(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(1)
            if len(ran) > 4:
                raise RuntimeError("a kernel that cannot be launched")
            return graph(*args)

        return run

    with tuned(tiny_models, "sd15", Tuning()) as bench:
        plain = pixels(bench.make("sd15"))
    with tuned(tiny_models, "sd15", Tuning(compile="on"), breaks_later) as bench:
        bench.make("sd15")
        warmed(bench, "sd15")
        made = [pixels(bench.make("sd15", steps=6)), pixels(bench.make("sd15"))][1]

        assert made == plain
        assert warmed(bench, "sd15") == "off: it failed (RuntimeError)"


@pytest.fixture
def with_lora(tiny: Path, tmp_path: Path) -> Models:
    write_lora(tmp_path / "loras" / "ink.safetensors", random_lora(unet(text_width=32), "unet"))
    return find_models([tiny, tmp_path])


def test_a_lora_runs_plain_and_what_comes_after_it_is_as_before(with_lora: Models):
    use = LoraUse("ink", 1.0, "ab" * 32)
    backend = Backend()
    with tuned(with_lora, "sd15", Tuning()) as bench:
        plain, painted = (bench.make("sd15", loras=loras).images[0] for loras in ((), (use,)))
    with tuned(with_lora, "sd15", Tuning(compile="on"), backend) as bench:
        bench.make("sd15")
        warmed(bench, "sd15")
        before = backend.ran
        with_it = bench.make("sd15", loras=(use,)).images[0]
        assert backend.ran == before
        without = [bench.make("sd15").images[0] for _ in range(2) if warmed(bench, "sd15")]

    assert with_it.tobytes() == painted.tobytes() != plain.tobytes()
    assert all(psnr_db(plain, each) > CLOSE_DB for each in without)


def test_deep_presets_take_compiled_blocks_too(tiny_models: Models):
    with tuned(tiny_models, "sd15", Tuning()) as bench:
        (plain,) = bench.make("sd15", preset=Preset.FAST, steps=6).images
    with tuned(tiny_models, "sd15", Tuning(compile="on"), backend := Backend()) as bench:
        bench.make("sd15", preset=Preset.FAST, steps=6)
        warmed(bench, "sd15")
        before = backend.ran
        (quick,) = bench.make("sd15", preset=Preset.FAST, steps=6).images

    assert backend.ran > before
    assert psnr_db(plain, quick) > CLOSE_DB


def test_unloading_ends_the_compiling_and_frees_the_weights(tiny_models: Models):
    with tuned(tiny_models, "sd15", Tuning(compile="on")) as bench:
        bench.make("sd15")
        warmed(bench, "sd15")
        denoiser = weakref.ref(bench.engine._loaded["sd15"][1].unet)
        bench.engine.unload("sd15")
        bench.engine.free_caches()

        assert denoiser() is None
        assert bench.engine.told() == {}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_memory_format_changes_rounding_only(tiny_models: Models, name: str):
    made = []
    for setting in ("off", "on"):
        with tuned(tiny_models, name, Tuning(channels_last=setting)) as bench:
            made.append(bench.make(name).images[0])
            told = bench.engine.told()[name]["channels_last"]

    assert psnr_db(*made) > CLOSE_DB
    assert told == "on"


@pytest.mark.parametrize("attention", ["native", "flash", "flash3", "xformers"])
def test_attention_that_is_not_installed_is_told_and_torchs_own_taken(tiny_models: Models, attention: Any):
    with tuned(tiny_models, "z-image", Tuning()) as bench:
        plain = pixels(bench.make("z-image"))
    with tuned(tiny_models, "z-image", Tuning(attention=attention)) as bench:
        told = bench.engine.told()["z-image"]["attention"]

        assert pixels(bench.make("z-image")) == plain
    assert told == "native" if attention == "native" else told == f"native: {attention} is not to be had here"


def test_the_attention_of_one_model_is_not_that_of_the_next(tiny_models: Models):
    with tuned(tiny_models, "z-image", Tuning(attention="cudnn")) as bench:
        told = bench.engine.told()["z-image"]["attention"]

    assert told == "cudnn"
    assert _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE


def test_what_is_off_is_told_with_its_reason(tiny_models: Models):
    with tuned(tiny_models, "z-image", Tuning(compile="auto")) as bench:
        told = bench.engine.told()["z-image"]
    with tuned(tiny_models, "sd15", Tuning(attention="cudnn")) as bench:
        others = bench.engine.told()["sd15"]

    assert told == {
        "channels_last": "off: no UNet",
        "attention": "native",
        "compile": "off: not worth its minutes on cpu",
    }
    assert others["compile"] == "off: by setting"
    assert others["attention"] == "native: this denoiser has no choice, cudnn is without effect"
    assert others["channels_last"] == "off: pays on cuda with half precision"
