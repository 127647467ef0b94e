"""Memory that bodies passed through is used again."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from router.freed_memory import keep_freed_memory
{first}
def pass_through():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        pieces = [bytes([1]) * {kilobytes} * 1024 for _ in range({count})]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pass_through()
print(pass_through())
"""


def faults(first: str, kilobytes: int, count: int) -> int:
    """Pages that the system had to give for 50 times so many pieces, after a first 50."""
    script = SCRIPT.format(first=first, kilobytes=kilobytes, count=count)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc alone")
@pytest.mark.parametrize(("kilobytes", "count"), [(256, 16), (8192, 2)])
def test_neither_pieces_of_bodies_nor_uploads_are_asked_of_the_system_again_and_again(kilobytes: int, count: int):
    before, after = (faults(first, kilobytes, count) for first in ("", "assert keep_freed_memory()"))

    assert before > 10_000
    assert after < 1000
