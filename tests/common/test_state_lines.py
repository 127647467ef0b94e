"""A node's state in lines: what comes together again is what was said, however it was cut on the way."""

import pytest

from common.node_api import DeviceStatus, JobPhase, JobStatus, ModelStatus, NodePhase, NodeStatus
from common.state_lines import NotAState, StateReader, line_of

IDLE = NodeStatus(
    name="a",
    version="0",
    phase=NodePhase.READY,
    device=DeviceStatus(kind="cpu", name="it", memory_total_bytes=2, memory_free_bytes=1),
    models=[
        ModelStatus(id=f"m{number}", family="f", profile="p", tasks=["generation"], created=0, resident=False)
        for number in range(3)
    ],
    jobs=[],
)


def at_step(step: int) -> NodeStatus:
    job = JobStatus(run_id="run_1", model="m1", phase=JobPhase.RUNNING, step=step, steps=20, work_units=20.0)
    return IDLE.model_copy(update={"jobs": [job]})


def with_resident(model: str) -> NodeStatus:
    models = [each.model_copy(update={"resident": each.id == model}) for each in IDLE.models]
    return at_step(2).model_copy(update={"models": models})


SAID = [
    IDLE,
    at_step(1),
    at_step(2),
    at_step(2),
    with_resident("m1"),
    with_resident("m2"),
    IDLE.model_copy(update={"phase": NodePhase.DRAINING}),
]


def lines() -> list[bytes]:
    return [line_of(before, now) for before, now in zip([None, *SAID], SAID, strict=False)]


def reader() -> StateReader:
    return StateReader(max_bytes=10_000)


def test_each_line_makes_the_next_state_of_the_one_before():
    told = reader()

    changed = [told.take(line) and told.status == status for line, status in zip(lines(), SAID, strict=True)]

    assert changed == [True, True, True, False, True, True, True]


def test_what_did_not_change_is_not_said_again():
    assert lines()[3] == b"{}\n"
    assert b"models" not in lines()[1]
    assert len(lines()[1]) < 150


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_it_does_not_matter_where_the_lines_are_cut(size: int):
    content, told = b"".join(lines()), reader()

    for start in range(0, len(content), size):
        told.take(content[start : start + size])

    assert told.status == SAID[-1]


def test_models_that_are_not_said_again_are_the_same_objects():
    told = reader()
    told.take(lines()[0])
    assert told.status is not None
    before = told.status.models

    told.take(lines()[1])

    assert told.status.models is before


@pytest.mark.parametrize(
    "content", [b"[]\n", b"null\n", b"<html>\n", b'{"name":"a"}\n', b'{"jobs":7}\n', b'{"name":"' + b"a" * 10_001]
)
def test_what_is_no_state_is_refused(content: bytes):
    with pytest.raises(NotAState):
        reader().take(content)
