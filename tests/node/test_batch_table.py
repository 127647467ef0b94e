"""Whether a batch pays is measured, in the order that tells soonest, and kept for the next start."""

from pathlib import Path

import pytest

from node.batch_table import AGAIN_AFTER, BatchTable, Wanted
from node.engines.base import PassTime

SHAPE = "sd15 64x64 4 steps guided"


def table(path: Path | None = None, device: str | None = "a CPU") -> BatchTable:
    return BatchTable(path, lambda: device)


def taught(one: float, *more: float) -> BatchTable:
    """A table that has seen passes of 1, 2, 4 ... pictures with these seconds a picture."""
    made = table()
    for size, seconds in zip((1, 2, 4, 8), (one, *more), strict=False):
        teach(made, size, seconds)
    return made


def teach(made: BatchTable, size: int, seconds: float) -> None:
    # Twice: the first of a size after a start is warm-up.
    for _ in range(2):
        made.learn(SHAPE, PassTime(size, seconds * size))


def test_nothing_is_assumed_until_a_picture_alone_was_measured():
    assert table().size(SHAPE, 8) == 1


def test_sizes_are_tried_one_after_another_when_so_many_wait():
    made = taught(1.0)
    assert (made.size(SHAPE, 1), made.size(SHAPE, 2), made.size(SHAPE, 8)) == (1, 2, 2)

    teach(made, 2, 0.7)
    assert (made.size(SHAPE, 3), made.size(SHAPE, 4), made.size(SHAPE, 8)) == (2, 4, 4)

    teach(made, 4, 0.5)
    assert (made.size(SHAPE, 7), made.size(SHAPE, 8)) == (4, 8)


def test_the_first_pass_of_a_size_after_a_start_teaches_nothing():
    made = table()
    made.learn(SHAPE, PassTime(1, 100.0))
    assert made.told() == {}

    made.learn(SHAPE, PassTime(1, 1.0))
    assert made.told() == {f"a CPU: {SHAPE}": {1: 1.0}}


@pytest.mark.parametrize(
    ("seconds", "size"), [((1.0, 0.95, 0.92), 1), ((1.0, 0.88, 0.87), 2), ((1.0, 0.7, 0.69), 2), ((1.0, 0.7, 0.6), 4)]
)
def test_a_batch_is_made_only_where_it_pays_and_no_larger_than_it_pays(seconds: tuple[float, ...], size: int):
    assert taught(*seconds).size(SHAPE, 4) == size


def test_a_size_that_gained_nothing_is_not_outdone_by_trying_a_larger_one():
    assert taught(1.0, 0.7, 0.7).size(SHAPE, 8) == 2


def test_a_verdict_is_checked_again_after_a_while():
    made = taught(1.0, 1.2)

    sizes = [made.size(SHAPE, 2) for _ in range(AGAIN_AFTER)]

    assert sizes == [1] * (AGAIN_AFTER - 1) + [2]


def test_what_did_not_fit_is_not_tried_again():
    made = taught(1.0, 0.6)
    made.learn(SHAPE, PassTime(4, None))

    assert made.size(SHAPE, 8) == 2


def test_every_shape_is_measured_by_itself():
    made = taught(1.0, 0.5)

    assert made.size("sd15 128x128 4 steps guided", 2) == 1


def test_a_device_that_is_not_known_yet_makes_one_after_another_and_learns_nothing():
    made = table(device=None)
    teach(made, 1, 1.0)

    assert (made.size(SHAPE, 8), made.told()) == (1, {})


def test_the_next_start_knows_what_this_one_measured_on_the_same_device(tmp_path: Path):
    path = tmp_path / "table.json"
    made = table(path)
    teach(made, 1, 1.0)
    teach(made, 2, 0.5)
    made.learn(SHAPE, PassTime(4, None))
    made.write()

    assert table(path).told() == made.told()
    assert table(path).size(SHAPE, 8) == 2
    assert BatchTable(path, lambda: "another").size(SHAPE, 8) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", '{"a": {"seconds": {"one": 1}}}', "[]"])
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, text: str):
    path = tmp_path / "table.json"
    path.write_text(text)

    assert table(path).told() == {}


def test_routers_are_told_how_many_are_wanted():
    made = taught(1.0, 0.6)

    assert (made.wanted("sd15"), made.wanted("never-run")) == (4, 2)
    assert taught(1.0, 1.0).wanted("sd15") == 1
    assert taught(1.0, 0.6, 0.4, 0.4).wanted("sd15") == 4


def wanted(pictures: int, shape: str = SHAPE, steps: int = 4) -> Wanted:
    return Wanted(shape, steps, pictures)


def test_who_comes_late_joins_as_many_as_a_pass_of_the_next_size_pays_for():
    made = taught(1.0, 0.6, 0.4, 0.41)

    assert [made.joins(wanted(1), [wanted(count)]) for count in range(1, 8)] == [2, 3, 4, None, None, None, None]
    assert made.joins(wanted(1), [wanted(1), wanted(2)]) == 4
    assert taught(1.0, 0.95).joins(wanted(1), [wanted(1)]) is None
    assert table().joins(wanted(1), [wanted(1)]) is None


def test_a_size_is_tried_by_who_comes_late_as_well():
    made = taught(1.0)

    assert made.joins(wanted(1), [wanted(1)]) == 2
    assert made.joins(wanted(1), [wanted(2)]) is None


OTHER = "sd15 64x64 40 steps guided"
LARGE = "sd15 128x128 4 steps guided"


def mixed(**measured: dict[int, float]) -> BatchTable:
    """A table that has measured several shapes: seconds a picture by the size of its pass."""
    made = table()
    for name, rows in measured.items():
        for size, seconds in rows.items():
            for _ in range(2):
                made.learn({"this": SHAPE, "other": OTHER, "large": LARGE}[name], PassTime(size, seconds * size))
    return made


def test_runs_of_different_steps_are_compared_by_the_step():
    made = mixed(this={1: 1.0, 2: 0.6}, other={1: 10.0, 2: 6.0})

    assert made.joins(wanted(1), [wanted(1, OTHER, 40)]) == 2
    assert mixed(this={1: 1.0}, other={1: 10.0, 2: 9.5}).joins(wanted(1), [wanted(1, OTHER, 40)]) is None


def test_a_small_picture_beside_a_large_one_must_be_worth_two_large_ones():
    worth = mixed(this={1: 1.0, 2: 0.6}, large={1: 1.5, 2: 0.9})
    not_worth = mixed(this={1: 1.0, 2: 0.6}, large={1: 4.0, 2: 2.4})

    assert worth.joins(wanted(1), [wanted(1, LARGE)]) == 2
    assert not_worth.joins(wanted(1), [wanted(1, LARGE)]) is None
    assert not_worth.joins(wanted(1, LARGE), [wanted(1)]) is None
    assert mixed(this={1: 1.0, 2: 0.6}).joins(wanted(1), [wanted(1, LARGE)]) is None


def test_numbers_between_the_sizes_teach_only_that_they_did_not_fit():
    made = taught(1.0, 0.6, 0.4)
    made.learn(SHAPE, PassTime(3, 0.1))
    assert set(made.told()[f"a CPU: {SHAPE}"]) == {1, 2, 4}

    made.learn(SHAPE, PassTime(3, None))
    assert made.joins(wanted(1), [wanted(1)]) == 2
    assert made.joins(wanted(1), [wanted(2)]) is None
