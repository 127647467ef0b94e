"""Pictures are decoded while the next make their steps, where there is room for both."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image

from node.engines.base import EngineFailed, RunCancelled
from node.models import Models
from tests.node.bench import Bench, pixels
from tests.node.stepping import Door, alone, four, opened
from tests.node.test_together import LEAST_DB, made, psnr_db

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

BOUND_S = 300.0
"""Of a wait for another thread: a wait that long is a failure."""


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(tiny_models)


@pytest.fixture
def beside(bench: Bench, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether there is room for a decode beside the steps: there is, unless the test says otherwise."""
    there_is = getattr(request, "param", True)
    with ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(bench.engine, "_decode_beside", thread if there_is else None)
        yield there_is


@contextmanager
def decoding(bench: Bench, decode: Callable[[int, Callable[[], Any]], Any]) -> Iterator[None]:
    """Decodes by `decode`, which is told the number of each and given the real one."""
    vae, numbers = bench.engine._loaded["sd15"][1].vae, itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        real = vae.decode
        patch.setattr(vae, "decode", lambda *args, **options: decode(next(numbers), lambda: real(*args, **options)))
        yield


@pytest.mark.usefixtures("beside")
def test_the_next_picture_makes_its_steps_while_the_last_is_decoded(bench: Bench):
    first, second, *_ = four(bench, "sd15")
    stepping = threading.Event()

    def on_step(prompt: str, step: int) -> None:
        if prompt == second.prompt and step == 2:
            stepping.set()

    def decode(number: int, real: Callable[[], Any]) -> Any:
        assert stepping.wait(BOUND_S)
        return real()

    with decoding(bench, decode):
        door = opened(bench, Door({0: [first, second]}, batch=1, on_step=on_step))

    outcomes = [made(door.outcomes[spec.prompt]) for spec in (first, second)]
    assert [each.batch for each in outcomes] == [1, 1]
    assert [pixels(each) for each in outcomes] == [pixels(alone(bench, spec)) for spec in (first, second)]


@pytest.mark.usefixtures("beside")
def test_steps_are_never_more_than_one_picture_ahead_of_the_decoding(bench: Bench):
    first, second, third, _ = four(bench, "sd15")
    second_made = threading.Event()
    out: list[int] = []
    out_before_third: list[list[int]] = []

    def on_step(prompt: str, step: int) -> None:
        if prompt == second.prompt and step == second.steps:
            second_made.set()
        if prompt == third.prompt and step == 1:
            out_before_third.append(out[:1])

    def decode(number: int, real: Callable[[], Any]) -> Any:
        assert second_made.wait(BOUND_S)
        picture = real()
        out.append(number)
        return picture

    with decoding(bench, decode):
        door = opened(bench, Door({0: [first, second, third]}, batch=1, on_step=on_step))

    assert out_before_third[0] == [0]
    assert all(pixels(made(door.outcomes[s.prompt])) == pixels(alone(bench, s)) for s in (first, second, third))


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("how", ["it fails", "it is cancelled"])
def test_who_ends_while_it_is_decoded_takes_nobody_with_it(bench: Bench, how: str):
    first, second, *_ = four(bench, "sd15")
    over = threading.Event()

    def on_step(prompt: str, step: int) -> None:
        at_work = {prompt for prompt, told in door.told.items() if told}
        if prompt == first.prompt and second.prompt in at_work and step == first.steps:
            over.set()
            if how == "it is cancelled":
                raise RunCancelled("enough")

    def decode(number: int, real: Callable[[], Any]) -> Any:
        if number == 0:
            assert over.wait(BOUND_S)
            if how == "it fails":
                raise ValueError("a secret prompt in a message")
        return real()

    door = Door({0: [first], first.steps: [second]}, batch=1, on_step=on_step)
    with decoding(bench, decode):
        opened(bench, door)

    failed = door.outcomes[first.prompt]
    assert isinstance(failed, EngineFailed if how == "it fails" else RunCancelled)
    assert "secret" not in failed.message
    assert pixels(made(door.outcomes[second.prompt])) == pixels(alone(bench, second))


@pytest.mark.usefixtures("beside")
def test_a_step_that_does_not_fit_beside_a_decode_is_made_when_that_is_over(bench: Bench):
    first, second, *_ = four(bench, "sd15")
    unet = bench.engine._loaded["sd15"][1].unet
    failed, under_way = threading.Event(), threading.Event()

    def no_room_for_both(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if under_way.is_set():
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")

    def decode(number: int, real: Callable[[], Any]) -> Any:
        under_way.set()
        assert number or failed.wait(BOUND_S)
        picture = real()
        under_way.clear()
        return picture

    hook = unet.register_forward_pre_hook(no_room_for_both)
    try:
        with decoding(bench, decode):
            door = opened(bench, Door({0: [first, second]}, batch=1))
    finally:
        hook.remove()

    assert failed.is_set()
    assert all(pixels(made(door.outcomes[spec.prompt])) == pixels(alone(bench, spec)) for spec in (first, second))


@pytest.mark.parametrize("beside", [False, True], indirect=True)
def test_a_decode_beside_the_steps_makes_the_same_pictures(bench: Bench, beside: bool, monkeypatch: pytest.MonkeyPatch):
    from node.engines.stepping import loop

    threads: set[int] = set()
    decode = loop.StepLoop._decoded

    def noted(self: loop.StepLoop, painting: Any) -> Image.Image:
        threads.add(threading.get_ident())
        return decode(self, painting)

    monkeypatch.setattr(loop.StepLoop, "_decoded", noted)
    specs = four(bench, "sd15")

    door = opened(bench, Door({0: specs}))

    assert (threading.get_ident() in threads) is not beside
    assert all(psnr_db(made(door.outcomes[s.prompt]).images[0], alone(bench, s).images[0]) >= LEAST_DB for s in specs)


@pytest.mark.parametrize("beside", [False, True], indirect=True)
@pytest.mark.parametrize("fail", [1, math.inf], ids=["once", "unless in tiles"])
def test_a_decode_that_does_not_fit_is_made_again_and_in_tiles_at_last(
    bench: Bench, fail: float, beside: bool, monkeypatch: pytest.MonkeyPatch
):
    vae, spec, calls = bench.engine._loaded["sd15"][1].vae, bench.spec("sd15"), []
    decode = vae.decode

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= fail and not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, **options)

    monkeypatch.setattr(vae, "decode", failing)
    door = opened(bench, Door({0: [spec]}))

    # Where nothing is beside the first decode, there is nothing to wait for but caches, and tiles come at once.
    assert made(door.outcomes[spec.prompt]).vae_tiled is (fail > 1 or not beside)
    assert not vae.use_tiling
