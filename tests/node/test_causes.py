"""A worker's death has a name an operator can act on."""

import pytest

from node.worker.causes import lost


@pytest.mark.parametrize(
    ("returncode", "hung", "code", "words"),
    [
        (-9, False, "insufficient_memory", "main memory ran out"),
        (137, False, "insufficient_memory", "main memory ran out"),
        (-6, False, "worker_lost", "aborted in native code"),
        (134, False, "worker_lost", "aborted in native code"),
        (-11, False, "worker_lost", "bad memory access"),
        (-15, False, "worker_lost", "ended by signal 15"),
        (0, False, "worker_lost", "ended by itself"),
        (1, False, "worker_lost", "exit 1"),
        (255, False, "worker_lost", "exit 255"),
        (-9, True, "worker_hung", "stopped answering"),
    ],
)
def test_every_way_to_die_is_told_apart(returncode: int, hung: bool, code: str, words: str):
    error = lost(returncode, hung=hung)

    assert error.code == code
    assert words in error.message
    assert error.status == 502
