"""A prompt that was read before gives the same bits, and never those of another model, guidance or LoRA."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.images_api import OutputFormat, Size
from node.engines.base import LoraUse
from node.engines.prompt_cache import PromptCache, prompt_key
from node.engines.prompts import Prompt
from node.masks import Canvas
from node.models import Models, find_models
from tests.checkpoints.loras import TEXT, random_lora, write_lora
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "sdxl-turbo", "z-image")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tiny: Path, tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_models)


@contextmanager
def readings(bench: Bench, name: str) -> Iterator[list[int]]:
    """Counts how often the text encoder is asked."""
    calls: list[int] = []
    hook = bench.engine._loaded[name][1].text_encoder.register_forward_hook(lambda *given: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_was_read_before_gives_the_same_pixels_without_the_encoder(bench: Bench, name: str):
    bench.engine._prompts.forget(name)
    with readings(bench, name) as first_calls:
        first = bench.make(name, negative_prompt="square", seeds=(41, 42))
    with readings(bench, name) as calls:
        again = bench.make(name, negative_prompt="square", seeds=(41, 42))

    assert first_calls
    assert not calls
    assert pixels(again) == pixels(first)
    assert (again.prompt_tokens, again.prompt_truncated) == (first.prompt_tokens, first.prompt_truncated)


@pytest.mark.parametrize(
    "change", [{"prompt": "another"}, {"prompt": "a (large:1.2) red circle"}, {"negative_prompt": "x"}, {"guidance": 1.0}]
)
def test_what_changes_an_embedding_is_read_anew(bench: Bench, change: dict[str, Any]):
    plain = bench.make("sd15")
    bench.engine._prompts.forget("sd15")
    fresh = pixels(bench.make("sd15", **change))

    bench.make("sd15")
    assert pixels(bench.make("sd15", **change)) == fresh != pixels(plain)


def test_a_lora_on_the_text_encoder_never_leaks(tiny: Path, tmp_path: Path):
    from tests.checkpoints.tiny import clip_encoder

    write_lora(tmp_path / "loras" / "words.safetensors", random_lora(clip_encoder(width=32), "text_encoder", TEXT))
    models = find_models([tiny, tmp_path])
    (lora,) = models.loras
    bench, use = Bench(Models({"sd15": models.by_name["sd15"]})), (LoraUse("words", 1.0, models.loras.sha256(lora)),)

    plain, words = bench.make("sd15"), bench.make("sd15", loras=use)
    weaker = bench.make("sd15", loras=(replace(use[0], scale=0.5),))

    assert len({pixels(made)[0] for made in (plain, words, weaker)}) == 3
    for loras, made in (((), plain), (use, words), ((), plain), ((replace(use[0], scale=0.0),), plain)):
        assert pixels(bench.make("sd15", loras=loras)) == pixels(made)


def test_what_a_model_read_is_forgotten_with_it(bench: Bench):
    bench.make("sd15")
    before = bench.engine._prompts.size_bytes
    order = bench.models.by_name["sd15"].load_order("cpu", "float32")

    bench.engine.unload("sd15")
    bench.engine.load(order)

    assert bench.engine._prompts.size_bytes < before
    with readings(bench, "sd15") as calls:
        bench.make("sd15")
    assert calls


def prompt(kilobytes: int) -> Prompt:
    return Prompt({"prompt_embeds": torch.ones(1, kilobytes, 256)}, 1, False)


def test_it_is_bounded_in_bytes_and_keeps_what_was_used_last(bench: Bench):
    cache, spec = PromptCache(CPU, max_bytes=3 * 1024), bench.spec("sd15")
    read: list[str] = []

    def get(text: str, kilobytes: int = 1) -> None:
        cache.get(replace(spec, prompt=text), None, lambda: read.append(text) or prompt(kilobytes))  # type: ignore[func-returns-value]

    for text in ("a", "b", "c", "a", "d", "a", "b"):
        get(text)
    get("too large", 4)

    assert read == ["a", "b", "c", "d", "b", "too large"]
    assert cache.size_bytes == 3 * 1024


def test_a_run_cannot_change_what_another_gets(bench: Bench):
    cache, spec = PromptCache(CPU), bench.spec("sd15")
    for _ in range(3):
        got = cache.get(spec, None, lambda: prompt(1)).arguments["prompt_embeds"]
        assert got.eq(1).all()
        got.zero_()


def test_beside_a_picture_that_the_encoder_may_look_at_it_is_read_each_time(bench: Bench):
    cache, read = PromptCache(CPU), list[int]()

    for _ in range(2):
        cache.get(bench.spec("sd15"), Canvas(noise(), None, (noise(),)), lambda: read.append(1) or prompt(1))  # type: ignore[func-returns-value]

    assert read == [1, 1]


def test_what_does_not_decide_an_embedding_is_not_in_its_key(bench: Bench):
    spec = bench.spec("sd15")
    other = replace(spec, seeds=(1, 2), drawn=Size(128, 64), size=Size(120, 64), steps=50, output_format=OutputFormat.WEBP)

    assert prompt_key(other) == prompt_key(spec)
