"""What the device is said to have."""

import os
from pathlib import Path

import pytest

from node.worker import device


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8), (None, 8)],
    ids=["without a limit", "two and a half", "half of one", "more than there are", "not in a container"],
)
def test_the_cores_are_those_that_the_process_is_bound_to_and_its_container_allows(
    allowed: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    if allowed is not None:
        (tmp_path / "cpu.max").write_text(f"{allowed}\n")

    assert device.cores() == cores
