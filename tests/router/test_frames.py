"""A stream that breaks off anywhere can be gone on with, or its client is told that it broke off."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.images_api import Task, events
from router import frames
from router.frames import Frames

HEAD = {"created_at": 1, "size": "64x64", "usage": {"b": 1, "a": 2}}
PREVIEWS = [events.KEEP_ALIVE, events.partial_image(Task.EDIT, b"p" * 50, 0, HEAD), events.KEEP_ALIVE]
PICTURE = events.completed(Task.EDIT, b"\0picture" * 20, HEAD)
STREAM = b"".join(PREVIEWS) + PICTURE


CUTS = st.sets(st.integers(0, len(STREAM)))


def broken_off(cuts: set[int], at: int) -> tuple[Frames, bytes]:
    """The stream up to there, in such pieces; and what was sent of it."""
    passing, sent = Frames(), b""
    for begin, end in pairwise([0, *sorted(cut for cut in cuts if cut < at), at]):
        sent += passing.take(STREAM[begin:end])
        assert STREAM.startswith(sent)
    return passing, sent


@given(CUTS, st.integers(0, len(STREAM)))
def test_however_a_stream_is_cut_all_of_it_passes(cuts: set[int], ends_at: int):
    passing, sent = broken_off(cuts, ends_at)

    assert sent + passing.left() == STREAM[:ends_at]


@given(CUTS, st.integers(0, len(STREAM) - 1))
def test_wherever_a_stream_breaks_off_it_can_end_with_the_whole_picture_after_whole_previews(cuts: set[int], breaks_at: int):
    passing, sent = broken_off(cuts, breaks_at)

    rest = passing.rest(PICTURE)

    assert rest is not None
    assert sent + rest in [b"".join(PREVIEWS[:count]) + PICTURE for count in range(len(PREVIEWS) + 1)]


def test_a_picture_that_was_begun_to_be_sent_is_gone_on_with_by_no_other_event():
    passing = Frames()
    assert passing.take(PICTURE[:100]) == PICTURE[:100]

    assert passing.rest(events.completed(Task.EDIT, b"another" * 20, HEAD)) is None


def test_the_picture_passes_as_it_comes_and_a_preview_once_it_is_whole():
    passing = Frames()
    assert passing.take(PREVIEWS[1][:-1]) == b""
    assert passing.take(PREVIEWS[1][-1:]) == PREVIEWS[1]

    assert passing.take(PICTURE[:100]) == PICTURE[:100]


def test_no_more_is_held_of_an_event_without_an_end_than_the_largest_preview(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames, "MOST_HELD_BYTES", 1000)
    passing = Frames()
    sent = b"".join(passing.take(b": " * 50) for _ in range(100))

    assert len(sent) > 9_000
    assert passing.rest(PICTURE) is None
