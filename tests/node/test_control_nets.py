"""ControlNets in the engine, on real classes with tiny weights: what they change, what they must not, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from common.images_api import ControlKind, Preprocess, Size
from node.engines.base import ControlMismatch, ControlUse, LoadOrder, Method, RunCancelled
from node.masks import Canvas
from node.models import Models, find_models
from node.safetensors_header import CheckpointRefused
from tests.checkpoints.controls import control_net, write_control
from tests.checkpoints.loras import random_lora, write_lora
from tests.checkpoints.tiny import SEED, unet
from tests.node.bench import Bench, noise, pixels
from tests.node.test_adapters import use as lora_use

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl")
SIZED: dict[str, dict[str, Any]] = {
    "sd15": {"text_width": 32},
    "sdxl": {
        "text_width": 96,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 6 * 8 + 64,
    },
}


def scene(left: int = 10) -> Image.Image:
    picture = Image.new("RGB", (64, 64))
    ImageDraw.Draw(picture).rectangle((left, 10, left + 30, 50), outline="white", width=3)
    return picture


def use(name: str, **changes: Any) -> ControlUse:
    plain = ControlUse(
        name=name,
        kind=ControlKind.CANNY,
        scale=1.0,
        start=0.0,
        end=1.0,
        preprocess=Preprocess.NONE,
        sha256=f"of {name}",
        image_sha256="",
        picture=scene(),
    )
    return replace(plain, **changes)


def write_all(folder: Path) -> None:
    for family, sizes in SIZED.items():
        net = control_net(unet(**sizes))
        write_control(folder / f"{family}-canny.safetensors", net)
        write_control(folder / f"{family}-original.safetensors", net, inventors=True)
        net.save_pretrained(folder / f"{family}-folder")
        write_control(folder / f"{family}-second.safetensors", control_net(unet(**sizes), seed=2))
        write_control(folder / f"{family}-zero.safetensors", control_net(unet(**sizes), strength=0))
    write_control(folder / "sd15-wide.safetensors", control_net(unet(text_width=40)))
    control_net(unet(text_width=40)).save_pretrained(folder / "sd15-wide-folder")


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(SEED)
    write_all(folder / "controlnet")
    write_lora(folder / "loras" / "ink.safetensors", random_lora(unet(text_width=32), "unet"))
    found = find_models([tiny, folder])
    return replace(found, by_name={name: found.by_name[name] for name in NAMES})


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models)


@pytest.mark.parametrize("name", NAMES)
def test_a_control_net_changes_the_picture_by_its_own_picture_and_leaves_nothing_behind(bench: Bench, name: str):
    before = pixels(bench.make(name))
    guided = pixels(bench.make(name, controls=(use(f"{name}-canny"),)))
    elsewhere = pixels(bench.make(name, controls=(use(f"{name}-canny", picture=scene(25)),)))
    again = pixels(bench.make(name, controls=(use(f"{name}-canny"),)))

    assert guided != before
    assert elsewhere not in (before, guided)
    assert again == guided
    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("name", NAMES)
def test_scale_0_and_an_untrained_one_change_no_pixel(bench: Bench, name: str):
    before = pixels(bench.make(name))

    assert pixels(bench.make(name, controls=(use(f"{name}-canny", scale=0.0),))) == before
    assert pixels(bench.make(name, controls=(use(f"{name}-zero"),))) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_and_a_file_in_either_way_of_naming_are_the_same_control_net(bench: Bench, name: str):
    made = {pixels(bench.make(name, controls=(use(f"{name}-{kind}"),)))[0] for kind in ("canny", "original", "folder")}

    assert len(made) == 1


def test_more_scale_and_other_times_are_other_pictures(bench: Bench):
    changes: list[dict[str, Any]] = [{}, {"scale": 0.5}, {"start": 0.5}, {"end": 0.5}]
    made = [pixels(bench.make("sd15", steps=4, controls=(use("sd15-canny", **each),)))[0] for each in changes]

    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", NAMES)
def test_two_guide_together_and_in_any_number_of_pictures(bench: Bench, name: str):
    both = (use(f"{name}-canny"), use(f"{name}-second", scale=0.5, picture=scene(25)))

    alone = pixels(bench.make(name, controls=both[:1]))
    made = pixels(bench.make(name, controls=both, seeds=(41, 42)))

    assert made[0] != alone[0]
    assert made == [pixels(bench.make(name, controls=both, seeds=(seed,)))[0] for seed in (41, 42)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [Method.IMAGE_TO_IMAGE, Method.INPAINT])
def test_edits_are_guided_and_keep_their_promises(bench: Bench, name: str, method: Method):
    repaint = Image.new("L", (60, 52), 0)
    repaint.paste(255, (10, 10, 40, 40))
    start = Canvas(noise(60, 52), repaint if method is Method.INPAINT else None)
    edit: dict[str, Any] = {"method": method, "strength": 0.75, "steps": 4, "size": Size(60, 52)}
    control = use(f"{name}-canny", picture=scene().crop((0, 0, 60, 52)))

    plain = bench.make(name, start, **edit).images[0]
    guided = bench.make(name, start, controls=(control,), **edit).images[0]

    assert guided.size == (60, 52)
    assert guided.tobytes() != plain.tobytes()
    assert pixels(bench.make(name, start, **edit)) == [plain.tobytes()]
    if method is Method.INPAINT:
        assert Image.composite(guided, start.picture, repaint).tobytes() == guided.tobytes()
    kept = bench.make(name, start, controls=(control,), **edit | {"strength": 0.0}).images[0]
    assert kept.tobytes() == start.picture.tobytes()


def test_a_lora_works_beside_it_and_neither_stays(bench: Bench, models: Models):
    before = pixels(bench.make("sd15"))
    (ink,) = (file for file in models.loras if file.name == "ink")
    lora, control = lora_use(ink.path), use("sd15-canny")

    only_lora = pixels(bench.make("sd15", loras=(lora,)))
    only_control = pixels(bench.make("sd15", controls=(control,)))
    both = pixels(bench.make("sd15", loras=(lora,), controls=(control,)))

    assert len({each[0] for each in (before, only_lora, only_control, both)}) == 4
    assert pixels(bench.make("sd15", controls=(control,))) == only_control
    assert pixels(bench.make("sd15")) == before


def test_a_guided_run_shares_the_weights_and_only_the_last_ones_stay(bench: Bench):
    nets, pipeline = bench.engine._control_nets["sd15"], bench.engine._loaded["sd15"][1]
    made, _ = nets.guided(pipeline, bench.spec("sd15", controls=(use("sd15-canny"), use("sd15-second"))), {})
    bench.make("sd15")

    assert made.unet is pipeline.unet
    assert made.vae is pipeline.vae
    assert set(nets._loaded) == {"of sd15-canny", "of sd15-second"}
    bench.make("sd15", controls=(use("sd15-second"),))
    assert set(nets._loaded) == {"of sd15-second"}


def test_a_cancelled_run_ends_at_its_step_and_leaves_the_pipeline_as_it_was(bench: Bench):
    before = pixels(bench.make("sd15"))
    seen = []

    def stop(step: int, steps: int) -> None:
        seen.append(step)
        if step == 2:
            raise RunCancelled("enough")

    spec = bench.spec("sd15", steps=20, controls=(use("sd15-canny"),))
    with pytest.raises(RunCancelled, match="enough"):
        bench.engine.generate(spec, None, stop, lambda index, image: None)

    assert seen == [1, 2]
    assert pixels(bench.make("sd15")) == before


@pytest.mark.parametrize("other", ["sd15-wide", "sd15-wide-folder", "sdxl-canny"])
def test_one_that_does_not_fit_is_told_with_its_tensors_and_the_next_run_is_as_before(bench: Bench, models: Models, other: str):
    before = pixels(bench.make("sd15"))
    order, pipeline = bench.engine._loaded["sd15"]
    # Requests are held to the family before this; here it is as if the header had lied.
    every = replace(order, controls=tuple(file.place for file in models.controls))
    nets = type(bench.engine._control_nets["sd15"])(every, pipeline, torch.device("cpu"))

    with pytest.raises(ControlMismatch, match=r"does not fit the model 'sd15'|not in a form") as told:
        nets.guided(pipeline, bench.spec("sd15", controls=(use(other),)), {})

    assert (told.value.status, told.value.code, told.value.param) == (422, "control_mismatch", "control")
    assert pixels(bench.make("sd15")) == before


def test_a_file_that_became_a_pickle_after_the_scan_is_refused(tiny: Path, tmp_path: Path):
    file = write_control(tmp_path / "controlnet" / "edges.safetensors", control_net(unet(text_width=32)))
    bench = Bench(replace(found := find_models([tiny, tmp_path]), by_name={"sd15": found.by_name["sd15"]}))
    file.write_bytes(b"\x80\x04\x95" + b"\x00" * 100)

    with pytest.raises(CheckpointRefused, match="a pickle"):
        bench.make("sd15", controls=(use("edges"),))


def test_half_precision_runs(models: Models):
    bench = Bench(Models({}))
    bench.models = models
    order: LoadOrder = models.by_name["sdxl"].load_order("cpu", "bfloat16")
    bench.engine.load(order)

    guided = pixels(bench.make("sdxl", controls=(use("sdxl-canny"),)))

    assert guided != pixels(bench.make("sdxl"))
