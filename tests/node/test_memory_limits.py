"""What memory did not suffice for is remembered, told, kept over restarts, and tried again after a day."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.node_api import MemoryLimit
from node.memory_limits import TRUSTED_S, MemoryLimits, Way
from node.offload import Offload

SD = Way("sd", "gpu float16")
MP = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


def test_before_anything_failed_there_is_no_limit():
    limits = MemoryLimits()
    limits.made(SD, "generation", MP, Offload.NONE)

    assert limits.of(SD) == {}


def test_half_of_what_failed_is_thought_to_fit_until_something_larger_did():
    limits = MemoryLimits()

    assert limits.failed(SD, "generation", MP) == MemoryLimit(too_large_px=MP, fits_px=MP // 2)
    limits.made(SD, "generation", MP * 3 // 4, Offload.NONE)
    assert limits.of(SD) == {"generation": MemoryLimit(too_large_px=MP, fits_px=MP * 3 // 4)}


def test_the_smallest_that_failed_is_the_limit():
    limits = MemoryLimits()
    for pixels in (2 * MP, MP, 3 * MP):
        limits.failed(SD, "generation", pixels)

    assert limits.of(SD)["generation"].too_large_px == MP


def test_a_limit_is_of_one_task_and_one_way_to_run_one_model():
    limits = MemoryLimits()
    limits.failed(SD, "edit", MP)

    assert list(limits.of(SD)) == ["edit"]
    assert limits.of(Way("sd", "gpu float32")) == limits.of(Way("other", "gpu float16")) == {}


def test_what_failed_and_is_made_after_all_is_no_limit_any_more():
    limits = MemoryLimits()
    limits.failed(SD, "generation", MP)
    limits.made(SD, "generation", MP, Offload.NONE)

    assert limits.of(SD) == {}


def test_a_size_that_was_made_once_and_then_fails_is_not_said_to_fit():
    limits = MemoryLimits()
    limits.made(SD, "generation", MP, Offload.NONE)

    assert limits.failed(SD, "generation", MP).fits_px == MP // 2


def test_limits_outlive_the_process_but_not_the_day(tmp_path: Path):
    path, clock = tmp_path / "limits.json", Clock()
    before = MemoryLimits(path, clock=clock)
    before.made(SD, "generation", MP, Offload.NONE)
    limit = before.failed(SD, "generation", 2 * MP)

    after = MemoryLimits(path, clock=clock)
    assert after.of(SD) == {"generation": limit} == {"generation": MemoryLimit(too_large_px=2 * MP, fits_px=MP)}
    clock.now_s += TRUSTED_S
    assert after.of(SD) == MemoryLimits(path, clock=clock).of(SD) == {}


def test_an_operator_can_have_a_model_tried_again(tmp_path: Path):
    path = tmp_path / "limits.json"
    limits = MemoryLimits(path)
    limits.failed(SD, "generation", MP)
    limits.failed(Way("other", ""), "generation", MP)
    limits.forget("sd")

    assert limits.of(SD) == MemoryLimits(path).of(SD) == {}
    assert MemoryLimits(path).of(Way("other", ""))


@pytest.mark.parametrize("text", ["", "no json", "{}", '[{"way": 1}]', "[[]]"])
def test_a_file_that_is_not_understood_is_no_limit(tmp_path: Path, text: str):
    path = tmp_path / "limits.json"
    path.write_text(text)
    limits = MemoryLimits(path)

    assert limits.of(SD) == {}
    limits.failed(SD, "generation", MP)
    assert MemoryLimits(path).of(SD)


def test_a_home_that_cannot_be_written_costs_the_memory_of_it_and_no_run(tmp_path: Path):
    limits = MemoryLimits(tmp_path / "gone" / "limits.json")
    limits.failed(SD, "generation", MP)

    assert limits.of(SD)


def test_what_a_large_picture_needed_the_next_as_large_is_given_at_once_and_smaller_ones_not(tmp_path: Path):
    path, clock = tmp_path / "limits.json", Clock()
    MemoryLimits(path, clock=clock).made(SD, "generation", MP, Offload.MODEL)
    limits = MemoryLimits(path, clock=clock)
    limits.made(SD, "generation", 2 * MP, Offload.GROUP)

    needed = [limits.offload(SD, "generation", pixels) for pixels in (MP - 1, MP, 2 * MP - 1, 3 * MP)]
    assert needed == [Offload.NONE, Offload.MODEL, Offload.MODEL, Offload.GROUP]
    assert limits.offload(SD, "edit", MP) is Offload.NONE
    assert limits.of(SD) == {}
    clock.now_s += TRUSTED_S
    assert limits.offload(SD, "generation", MP) is Offload.NONE


def test_what_was_beside_the_model_is_kept_with_a_limit_and_holds_for_as_much_and_more(tmp_path: Path):
    path = tmp_path / "limits.json"
    one, two = replace(SD, beside=("edges",)), replace(SD, beside=("depth", "edges"))
    MemoryLimits(path).failed(one, "generation", MP)
    limits = MemoryLimits(path)
    limits.made(one, "edit", MP, Offload.MODEL)

    assert limits.of(SD) == limits.of(replace(SD, beside=("depth",))) == {}
    assert limits.of(one) == limits.of(two) == {"generation": MemoryLimit(too_large_px=MP, fits_px=MP // 2)}
    assert [limits.offload(way, "edit", MP) for way in (SD, one, two)] == [Offload.NONE, Offload.MODEL, Offload.MODEL]
    limits.failed(two, "generation", MP // 2)
    assert limits.of(two)["generation"].too_large_px == MP // 2
    assert limits.of(one)["generation"].too_large_px == MP
