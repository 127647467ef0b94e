"""LoRAs on the diffusers engine with tiny and with trained weights: what they change, and that nothing of them stays."""

import hashlib
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import LoraMismatch, RunCancelled
from common.images_api import Size
from node.demo.evaluate import held_out_captions, judge, shares
from node.engines.base import LoraUse, Method
from node.masks import Canvas
from node.models import Models, find_models
from node.safetensors_header import CheckpointRefused
from tests.checkpoints.loras import TEXT, in_kohyas_names, random_lora, write_lora
from tests.node.test_engine import Bench, distance, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SIDE = Size(256, 256)
DENOISERS = {"sd15": "unet", "sdxl": "unet", "z-image": "transformer"}


def use(path: Path, scale: float = 1.0) -> LoraUse:
    name = path.parent.name if path.name.startswith("pytorch_lora") else path.stem
    return LoraUse(name, scale, hashlib.sha256(path.read_bytes()).hexdigest())


def some(*roots: Path) -> Models:
    """The models of DENOISERS below some folders, and every LoRA."""
    found = find_models(list(roots))
    return Models({name: found.by_name[name] for name in DENOISERS}, loras=found.loras)


class Workshop:
    """An engine with every tiny model, and random LoRAs for them in a `loras` folder."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        bare = Bench(some(tiny))
        self.root = folder
        self.parts = {name: bare.engine._loaded[name][1] for name in DENOISERS}
        self.files: dict[str, Path] = {}
        for name, denoiser in DENOISERS.items():
            for seed in (1, 2):
                self.add(f"{name}-{seed}", random_lora(getattr(self.parts[name], denoiser), denoiser, seed=seed))
        text = random_lora(self.parts["sd15"].text_encoder, "text_encoder", TEXT, strength=2.0)
        self.add("sd15-text", text)
        self.add("sd15-both", text | random_lora(self.parts["sd15"].unet, "unet", seed=3))
        encoders = random_lora(self.parts["sdxl"].text_encoder_2, "text_encoder_2", TEXT, strength=2.0)
        self.add("sdxl-text", random_lora(self.parts["sdxl"].text_encoder, "text_encoder", TEXT, strength=2.0) | encoders)
        self.tiny = tiny

    def add(self, name: str, tensors: dict[str, torch.Tensor]) -> LoraUse:
        self.files[name] = write_lora(self.root / "loras" / f"{name}.safetensors", tensors)
        return use(self.files[name])

    def bench(self) -> Bench:
        return Bench(some(self.tiny, self.root))

    def use(self, name: str, scale: float = 1.0) -> LoraUse:
        return use(self.files[name], scale)


@pytest.fixture(scope="module")
def workshop(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tiny, tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def bench(workshop: Workshop) -> Bench:
    return workshop.bench()


@pytest.mark.parametrize("name", DENOISERS)
def test_a_lora_changes_the_picture_and_leaves_nothing_behind(bench: Bench, workshop: Workshop, name: str):
    before = pixels(bench.make(name))
    with_it = bench.make(name, loras=(workshop.use(f"{name}-1"),))
    after = pixels(bench.make(name))

    assert pixels(with_it) != before
    assert after == before
    assert with_it.lora_layers[f"{name}-1"] > 0
    assert pixels(bench.make(name, loras=(workshop.use(f"{name}-1"),))) == pixels(with_it)


@pytest.mark.parametrize("name", DENOISERS)
def test_an_engine_that_had_loras_makes_the_pictures_of_one_that_never_had_any(workshop: Workshop, tiny: Path, name: str):
    used = workshop.bench()
    used.make(name, loras=(workshop.use(f"{name}-1"), workshop.use(f"{name}-2", -2.0)))

    assert pixels(used.make(name)) == pixels(Bench(some(tiny)).make(name))


@pytest.mark.parametrize("name", DENOISERS)
def test_scale_0_is_no_lora_bit_for_bit(bench: Bench, workshop: Workshop, name: str):
    made = bench.make(name, loras=(workshop.use(f"{name}-1", 0.0),))

    assert pixels(made) == pixels(bench.make(name))
    assert made.lora_layers == {f"{name}-1": 0}


def test_the_larger_the_scale_the_farther_the_picture(bench: Bench, workshop: Workshop):
    (plain,) = bench.make("sd15").images
    far = [
        distance(plain, bench.make("sd15", loras=(workshop.use("sd15-1", scale),)).images[0]) for scale in (0.0, 0.25, 0.5, 1.0)
    ]

    assert far[0] == 0.0
    assert far == sorted(far)
    assert len(set(far)) == 4


@pytest.mark.parametrize("name", DENOISERS)
def test_two_loras_at_once_are_neither_alone_and_their_order_does_not_matter(bench: Bench, workshop: Workshop, name: str):
    one, two = workshop.use(f"{name}-1", 0.7), workshop.use(f"{name}-2", 0.5)
    both = bench.make(name, loras=(one, two))

    pictures = [pixels(bench.make(name, loras=loras)) for loras in ((one,), (two,), ())]
    assert pixels(both) not in pictures
    assert len(both.lora_layers) == 2
    reversed_ = bench.make(name, loras=(two, one)).images[0]
    # Sums in another order differ in the last bits.
    assert distance(both.images[0], reversed_) < 0.5


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_layers_of_text_encoders_are_applied_and_taken_back(bench: Bench, workshop: Workshop, name: str):
    before = pixels(bench.make(name))
    made = bench.make(name, loras=(workshop.use(f"{name}-text"),))

    assert made.lora_layers[f"{name}-text"] == {"sd15": 12, "sdxl": 24}[name]
    assert pixels(made) != before
    assert pixels(bench.make(name)) == before


def test_a_lora_of_both_parts_leaves_neither_behind_when_one_of_a_single_part_follows(bench: Bench, workshop: Workshop):
    alone = pixels(workshop.bench().make("sd15", loras=(workshop.use("sd15-1"),)))
    both = pixels(bench.make("sd15", loras=(workshop.use("sd15-both"),)))
    text = pixels(bench.make("sd15", loras=(workshop.use("sd15-text"),)))

    assert pixels(bench.make("sd15", loras=(workshop.use("sd15-1"),))) == alone
    assert pixels(bench.make("sd15", loras=(workshop.use("sd15-both"),))) == both
    assert pixels(bench.make("sd15", loras=(workshop.use("sd15-text"),))) == text
    assert len({repr(each) for each in (alone, both, text)}) == 3


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("method", [Method.IMAGE_TO_IMAGE, Method.INPAINT])
def test_edits_have_the_loras_too_and_share_them(bench: Bench, workshop: Workshop, name: str, method: Method):
    start = Canvas(noise(), None)
    how = {"method": method, "strength": 0.8, "steps": 5}

    before = pixels(bench.make(name, start, **how))
    with_it = pixels(bench.make(name, start, loras=(workshop.use(f"{name}-1"),), **how))

    assert with_it != before
    assert pixels(bench.make(name, start, **how)) == before
    assert pixels(bench.make(name)) == pixels(workshop.bench().make(name))


@pytest.mark.parametrize(
    ("name", "parts"), [("sd15", ("unet", "text_encoder")), ("sdxl", ("unet", "text_encoder", "text_encoder_2"))]
)
def test_a_file_in_kohyas_names_does_what_the_same_does_in_diffusers(workshop: Workshop, name: str, parts: tuple[str, ...]):
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        tensors |= random_lora(getattr(workshop.parts[name], part), part, ("to_q", "to_v", *TEXT))
    plain = workshop.add(f"{name}-plain", tensors)
    kohya = workshop.add(f"{name}-kohya", in_kohyas_names(tensors, alpha=4.0, two_encoders=name == "sdxl"))
    half = workshop.add(f"{name}-half", in_kohyas_names(tensors, alpha=2.0, two_encoders=name == "sdxl"))
    bench = workshop.bench()

    ours, theirs = bench.make(name, loras=(plain,)), bench.make(name, loras=(kohya,))

    assert pixels(ours) == pixels(theirs) != pixels(bench.make(name))
    assert ours.lora_layers[f"{name}-plain"] == theirs.lora_layers[f"{name}-kohya"] == len(tensors) // 2
    assert (
        distance(bench.make(name, loras=(half,)).images[0], bench.make(name, loras=(replace(plain, scale=0.5),)).images[0])
        < 0.5
    )


STRANGE = {
    "an unknown layer": lambda tensors: (
        tensors
        | {
            "unet.mid_block.nonsense.lora_A.weight": torch.ones(4, 16),
            "unet.mid_block.nonsense.lora_B.weight": torch.ones(16, 4),
        }
    ),
    "another component": lambda tensors: (
        tensors
        | {
            "transformer.nonsense.lora_A.weight": torch.ones(4, 16),
            "transformer.nonsense.lora_B.weight": torch.ones(16, 4),
        }
    ),
    "another width": lambda tensors: {
        key: torch.ones(4, tensor.shape[1] + 1) if "lora_A" in key and "attn2.to_k" in key else tensor
        for key, tensor in tensors.items()
    },
    "half of a pair": lambda tensors: dict(list(tensors.items())[1:]),
    "kohya, an unknown layer": lambda tensors: (
        in_kohyas_names(tensors, alpha=1.0)
        | {
            "lora_unet_nonsense.lora_down.weight": torch.ones(4, 16),
            "lora_unet_nonsense.lora_up.weight": torch.ones(16, 4),
        }
    ),
    "kohya, a lost half": lambda tensors: dict(list(in_kohyas_names(tensors, alpha=1.0).items())[1:]),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_what_does_not_fit_the_model_is_refused_whole_and_named(workshop: Workshop, fault: str):
    tensors = random_lora(workshop.parts["sd15"].unet, "unet")
    name = f"strange-{list(STRANGE).index(fault)}"
    lora = workshop.add(name, STRANGE[fault](tensors))
    bench = workshop.bench()
    before = pixels(bench.make("sd15"))

    for loras in ((lora,), (workshop.use("sd15-1"), lora)):
        with pytest.raises(LoraMismatch) as told:
            bench.make("sd15", loras=loras)
        assert (told.value.status, told.value.param, told.value.code) == (422, "loras", "lora_mismatch")
        assert name in told.value.message

    if "unknown" in fault:
        assert "1 of" in told.value.message
        assert "nonsense" in told.value.message
    assert pixels(bench.make("sd15")) == before


def test_many_unmatched_layers_are_counted_and_the_first_few_named(bench: Bench, workshop: Workshop):
    foreign = workshop.add("foreign", random_lora(workshop.parts["sdxl"].unet, "unet", ("proj_in", "to_k", "to_q")))
    bench = workshop.bench()

    with pytest.raises(LoraMismatch, match=r"\d+ of its \d+ layers match nothing in it \(unet\..*, \.\.\.\)"):
        # The header alone cannot tell it is SDXL's, were it not for its names; the engine is asked as if it could not.
        Bench.make(_with(bench, "sd15", foreign.name), "sd15", loras=(foreign,))


def _with(bench: Bench, model: str, lora: str) -> Bench:
    """The bench with a LoRA of another family among those of a model."""
    place = next(each.place for each in bench.models.loras if each.name == lora)
    order = bench.models.by_name[model].load_order("cpu", "float32")
    bench.engine.unload(model)
    bench.engine.load(replace(order, loras=(*order.loras, place)))
    return bench


def test_loras_stay_until_they_are_dropped_and_come_back_as_they_were(workshop: Workshop):
    uses = [workshop.use("sd15-1"), workshop.use("sd15-2")]
    bench = workshop.bench()
    before, first = pixels(bench.make("sd15")), pixels(bench.make("sd15", loras=(uses[0],)))
    together = pixels(bench.make("sd15", loras=tuple(uses)))
    assert len(kept(bench)) == 2

    bench.engine.drop_loras("sd15", [uses[0].sha256, "never there"])
    bench.engine.drop_loras("not loaded", [uses[0].sha256])
    assert kept(bench) == [f"x{uses[1].sha256[:24]}"]

    assert pixels(bench.make("sd15")) == before
    assert pixels(bench.make("sd15", loras=(uses[0],))) == first
    assert pixels(bench.make("sd15", loras=tuple(uses))) == together


def test_the_memory_counted_for_a_lora_is_what_its_tensors_take(workshop: Workshop):
    bench = workshop.bench()
    (file,) = [each for each in bench.models.loras if each.name == "sd15-both"]
    bench.make("sd15", loras=(workshop.use("sd15-both"),))

    pipeline = bench.engine._loaded["sd15"][1]
    adapters = [
        each for part in (pipeline.unet, pipeline.text_encoder) for each in part.named_parameters() if "lora_" in each[0]
    ]
    assert file.memory_bytes("float32") == sum(weight.nbytes for _, weight in adapters) == 2 * file.memory_bytes("bfloat16")


def kept(bench: Bench) -> list[str]:
    """Adapters that the UNet really holds."""
    unet = bench.engine._loaded["sd15"][1].unet
    return sorted({name for module in unet.modules() for name in getattr(module, "lora_A", ())})


def test_a_run_cancelled_at_a_step_leaves_no_lora_behind(bench: Bench, workshop: Workshop):
    before = pixels(bench.make("sd15"))

    def stop(step: int, steps: int) -> None:
        raise RunCancelled("enough")

    with pytest.raises(RunCancelled):
        bench.engine.generate(bench.spec("sd15", loras=(workshop.use("sd15-1"),)), None, stop, lambda index, image: None)

    assert pixels(bench.make("sd15")) == before


def test_a_file_that_became_something_else_since_the_scan_is_refused(workshop: Workshop):
    lora = workshop.add("swapped", random_lora(workshop.parts["sd15"].unet, "unet"))
    bench = workshop.bench()
    workshop.files["swapped"].write_bytes(b"\x80\x04\x95" + bytes(40))

    with pytest.raises(CheckpointRefused, match="a pickle"):
        bench.make("sd15", loras=(lora,))
    workshop.files.pop("swapped").unlink()


def test_a_model_that_is_unloaded_takes_its_loras_along(workshop: Workshop):
    bench = workshop.bench()
    bench.make("sd15", loras=(workshop.use("sd15-1"),))
    bench.engine.unload("sd15")
    bench.engine.load(bench.models.by_name["sd15"].load_order("cpu", "float32"))

    assert kept(bench) == []
    assert pixels(bench.make("sd15", loras=(workshop.use("sd15-1"),))) != pixels(bench.make("sd15"))


def test_half_precision_models_take_loras(workshop: Workshop):
    bench = Bench(Models({}))
    bench.models = some(workshop.tiny, workshop.root)
    bench.engine.load(bench.models.by_name["z-image"].load_order("cpu", "bfloat16"))
    plain = pixels(bench.make("z-image"))

    assert pixels(bench.make("z-image", loras=(workshop.use("z-image-1"),))) != plain
    assert pixels(bench.make("z-image")) == plain


def test_the_few_step_lora_of_the_demonstration_checkpoint_is_applied_whole_and_its_pictures_follow_their_captions(
    tmp_path: Path,
):
    demo = Bench(find_models([tmp_path]))
    (lora,) = demo.models.default.loras
    four = {"steps": 4, "guidance": 1.0, "sampler": "lcm", "drawn": SIDE, "size": SIDE}
    asked = held_out_captions(8)

    made = [
        demo.make("aquatint-demo", prompt=each.caption, seeds=(seed,), loras=(use(lora.path),), **four)
        for seed, each in enumerate(asked)
    ]

    assert made[0].lora_layers == {"few_step": 129}
    plain = demo.make("aquatint-demo", prompt=asked[0].caption, seeds=(0,), **four).images[0]
    assert distance(made[0].images[0], plain) > 0.5
    # Measured: 0.86, over ground, number, colour, shape, size, place and all of them.
    assert statistics.mean(shares(judge(asked, [each.images[0] for each in made])).values()) > 0.7
