"""Where weights lie: chosen by what fits, and the same pictures wherever they come from."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from common.errors import RunCancelled
from node.engine_names import EngineName
from node.engines.base import LoraUse, Method
from node.masks import Canvas
from node.models import Models, find_models
from node.offload import Offload, OffloadSetting, choose_offload
from tests.checkpoints.loras import random_lora, write_lora
from tests.checkpoints.tiny import unet
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "z-image")
START = Canvas(noise(), noise().convert("L"))


@dataclass(frozen=True)
class Weights:
    """A checkpoint of 100 bytes: 60 in its largest component, 10 in two layers."""

    engine: EngineName = EngineName.DIFFUSERS

    def device_bytes(self, dtype: str, offload: Offload) -> int:
        return {Offload.NONE: 100, Offload.MODEL: 60, Offload.GROUP: 10}[offload]


@pytest.mark.parametrize(
    ("budget_bytes", "at_least", "mode", "reason"),
    [
        (None, Offload.NONE, Offload.NONE, "all 100 bytes of weights fit"),
        (100, Offload.NONE, Offload.NONE, "all 100 bytes of weights fit"),
        (99, Offload.NONE, Offload.MODEL, "are 100 bytes, of which 99 may be on the device; by model 60 are at once"),
        (59, Offload.NONE, Offload.GROUP, "by group 10 are at once"),
        (5, Offload.NONE, Offload.GROUP, "by group 10 are at once"),
        (100, Offload.MODEL, Offload.MODEL, "memory ran out for pictures as large as this"),
        (None, Offload.GROUP, Offload.GROUP, "memory ran out for pictures as large as this"),
        (59, Offload.MODEL, Offload.GROUP, "of which 59 may be"),
    ],
)
def test_on_a_gpu_the_first_mode_that_fits_is_taken(budget_bytes: int | None, at_least: Offload, mode: Offload, reason: str):
    chosen = choose_offload(
        Weights(), dtype="float16", device="cuda", budget_bytes=budget_bytes, wanted="auto", at_least=at_least
    )

    assert chosen.mode is mode
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("engine", "device", "wanted", "mode", "reason"),
    [
        (EngineName.DIFFUSERS, "cpu", "auto", Offload.NONE, "nowhere to move"),
        (EngineName.DIFFUSERS, "mps", "auto", Offload.NONE, "nowhere to move"),
        (EngineName.SDCPP, "cuda", "auto", Offload.NONE, "sd.cpp keeps all weights"),
        (EngineName.SDCPP, "cuda", "group", Offload.NONE, "sd.cpp keeps all weights"),
        (EngineName.DIFFUSERS, "cuda", "none", Offload.NONE, "the operator's choice"),
        (EngineName.DIFFUSERS, "cpu", "model", Offload.MODEL, "the operator's choice"),
    ],
)
def test_where_there_is_one_mode_only_it_is_taken_whatever_fits(
    engine: EngineName, device: str, wanted: OffloadSetting, mode: Offload, reason: str
):
    chosen = choose_offload(Weights(engine), dtype="float16", device=device, budget_bytes=1, wanted=wanted)

    assert chosen.mode is mode
    assert reason in chosen.reason


def test_what_each_mode_takes_of_the_device_is_known_from_the_headers(tiny_models: Models):
    for model in tiny_models:
        sizes = [model.checkpoint.device_bytes("float32", mode) for mode in Offload]
        assert sizes[0] == model.checkpoint.memory_bytes("float32") > sizes[1] >= sizes[2] > 0


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models") / "loras"
    write_lora(folder / "ink.safetensors", random_lora(unet(text_width=32), "unet"))
    found = find_models([tiny, folder.parent])
    return Models({name: found.by_name[name] for name in NAMES})


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models)


def stop(step: int, steps: int) -> None:
    raise RunCancelled("stopped")


def pictures_of(bench: Bench, name: str) -> list[bytes]:
    """One of each method, one stopped half way between, and one with a LoRA where there is one."""
    made = pixels(bench.make(name))
    with pytest.raises(RunCancelled):
        bench.engine.generate(bench.spec(name), None, stop, lambda index, image: None)
    for method in (Method.IMAGE_TO_IMAGE, Method.INPAINT):
        made.extend(pixels(bench.make(name, START, method=method, strength=0.7)))
    if bench.models.by_name[name].loras:
        made.extend(pixels(bench.make(name, loras=(LoraUse("ink", 0.8, "0" * 64),))))
        made.extend(pixels(bench.make(name)))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_same_but_for_rounding_wherever_the_weights_come_from(bench: Bench, name: str):
    whole = pictures_of(bench, name)
    for mode in (Offload.MODEL, Offload.GROUP):
        bench.engine.unload(name)
        bench.engine.load(replace(bench.models.by_name[name].load_order("cpu", "float32"), offload=mode))
        for before, now in zip(whole, pictures_of(bench, name), strict=True):
            # Of 255 levels; on SDXL one byte of a picture differs by one.
            assert max(abs(a - b) for a, b in zip(before, now, strict=True)) <= 1
