"""Weighted and long prompts on real CLIP encoders: equal to the stock pipeline where that can read them, more where not."""

import statistics
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from common.images_api import Size
from node.engines.clip_text import LOOK_BACK_TOKENS, clip_text, in_windows, weighted
from node.models import Models, find_models
from tests.node.test_engine import Bench, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

CLIP = ("sd15", "sdxl")
COMMA = 11


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(tiny_models)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The trained demonstration checkpoint."""
    return Bench(find_models([tmp_path_factory.mktemp("empty")]))


def read(bench: Bench, name: str, **changes: Any) -> dict[str, Tensor]:
    order, pipeline = bench.engine._loaded[name]
    with torch.no_grad():
        text = clip_text(pipeline, order.profile, bench.spec(name, **changes))
    assert text is not None
    return text.arguments


def stock(bench: Bench, name: str, prompt: str, negative: str | None) -> dict[str, Tensor]:
    pipeline = bench.engine._loaded[name][1]
    with torch.no_grad():
        made = pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative
        )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, made, strict=False))


@pytest.mark.parametrize("name", CLIP)
@pytest.mark.parametrize(
    ("prompt", "negative"), [("a red fox", ""), ("", ""), ("a fox, 白い", "a square"), ("x" * 75, "y" * 75), (r"\(a fox\)", "")]
)
def test_a_short_prompt_without_weights_is_read_bit_for_bit_as_the_stock_pipeline_reads_it(
    bench: Bench, name: str, prompt: str, negative: str
):
    ours = read(bench, name, prompt=prompt, negative_prompt=negative)
    stocks = stock(bench, name, prompt.replace("\\", ""), negative or None)

    assert ours.keys() == stocks.keys()
    assert all(torch.equal(ours[each], stocks[each]) for each in ours)


def test_the_trained_checkpoint_reads_plain_captions_as_before(demo: Bench):
    for prompt in ("a large red circle on the left, on a blue background", "青い背景に赤い丸"):
        ours, stocks = read(demo, "aquatint-demo", prompt=prompt), stock(demo, "aquatint-demo", prompt, None)

        assert all(torch.equal(ours[each], stocks[each]) for each in ours)


def test_a_weight_changes_its_own_words_and_keeps_the_mean(demo: Bench):
    plain = read(demo, "aquatint-demo", prompt="large red")["prompt_embeds"]
    strong = read(demo, "aquatint-demo", prompt="large (red:1.3)")["prompt_embeds"]
    grown = strong[0].norm(dim=-1) / plain[0].norm(dim=-1)

    # Token 2 is "red"; all others share the one factor that restores the mean.
    assert grown[2] / grown[1] == pytest.approx(1.3, abs=1e-4)
    assert torch.allclose(grown[3:], grown[1].expand(74), atol=1e-4)
    assert strong.mean().item() == pytest.approx(plain.mean().item(), abs=1e-5)


def test_the_mean_of_a_window_is_what_it_was():
    embeddings = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1)) + 0.5

    changed = weighted(embeddings, [1.0, 1.5, 1.5, 0.2, 1.0, 1.0])

    assert changed.mean().item() == pytest.approx(embeddings.mean().item(), abs=1e-6)
    assert weighted(embeddings, [1.0] * 6) is embeddings


def test_numbers_around_zero_have_no_mean_to_restore():
    around = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    around -= around.mean(-1, keepdim=True)

    changed = weighted(around, [1.0, 1.5, 1.0, 1.0, 1.0, 1.0])

    assert torch.allclose(changed[0, 1], 1.5 * around[0, 1])
    assert torch.equal(changed[0, 2:], around[0, 2:])
    assert torch.equal(weighted(torch.zeros(1, 3, 4), [1.0, 2.0, 1.0]), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("name", CLIP)
def test_a_long_prompt_is_read_to_its_end(bench: Bench, name: str):
    long = "abc " * 60
    ours = read(bench, name, prompt=long + "fox", negative_prompt="short")
    other = read(bench, name, prompt=long + "cat", negative_prompt="short")
    first = read(bench, name, prompt="abc " * 25)

    assert ours["prompt_embeds"].shape[1] == ours["negative_prompt_embeds"].shape[1] == 3 * 77
    assert torch.equal(ours["prompt_embeds"][:, :77], first["prompt_embeds"])
    assert not torch.equal(ours["prompt_embeds"][:, 154:], other["prompt_embeds"][:, 154:])
    assert pixels(bench.make(name, prompt=long + "fox")) != pixels(bench.make(name, prompt=long + "cat"))


@pytest.mark.parametrize("name", CLIP)
def test_a_long_negative_prompt_is_read_to_its_end_as_well(bench: Bench, name: str):
    long = "abc " * 60
    ours = read(bench, name, prompt="a fox", negative_prompt=long + "fox")

    assert ours["prompt_embeds"].shape == ours["negative_prompt_embeds"].shape == (1, 3 * 77, ours["prompt_embeds"].shape[2])
    assert not torch.equal(
        ours["negative_prompt_embeds"],
        read(bench, name, prompt="a fox", negative_prompt=long + "cat")["negative_prompt_embeds"],
    )


def test_windows_end_behind_a_comma_that_is_near():
    ids = [1] * 60 + [COMMA] + [2] * 30

    windows = in_windows(ids, [1.0] * len(ids), room=75, comma=COMMA)

    assert [len(window) for window, _ in windows] == [61, 30]
    far = [1] * (75 - LOOK_BACK_TOKENS - 1) + [COMMA] + [2] * 40
    assert [len(window) for window, _ in in_windows(far, [1.0] * len(far), room=75, comma=COMMA)] == [75, len(far) - 75]


@pytest.mark.parametrize("length", [0, 1, 74, 75, 76, 150, 151, 1000])
def test_windows_hold_every_token_once_in_order(length: int):
    ids = [COMMA if number % 13 == 0 else number + 100 for number in range(length)]
    windows = in_windows(ids, [float(each) for each in ids], room=75, comma=COMMA)

    assert [each for window, _ in windows for each in window] == ids
    assert [each for _, window in windows for each in window] == [float(each) for each in ids]
    assert all(len(window) <= 75 for window, _ in windows)


def test_the_less_a_subject_weighs_the_less_of_it_is_in_the_trained_models_pictures(demo: Bench):
    def red(weight: float) -> float:
        made = demo.make(
            "aquatint-demo",
            prompt=f"a (large red circle in the centre:{weight}), on a white background",
            seeds=(0, 1),
            steps=10,
            drawn=Size(192, 192),
            size=Size(192, 192),
        )
        return statistics.mean(redness(image) for image in made.images)

    plain, less, least = red(1.0), red(0.5), red(0.1)

    # Measured: 57, 49, 25.
    assert plain > less + 3
    assert least < plain * 0.7


def redness(image: Image.Image) -> float:
    """Mean of red above the stronger of green and blue, 0..255, in the middle of a picture."""
    side = image.width // 4
    values = image.crop((side, side, 3 * side, 3 * side)).tobytes()
    return statistics.mean(max(0, values[i] - max(values[i + 1], values[i + 2])) for i in range(0, len(values), 3))


def test_only_the_clip_families_read_weights(bench: Bench):
    order, pipeline = bench.engine._loaded["z-image"]

    assert clip_text(pipeline, order.profile, bench.spec("z-image")) is None
