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
        pieces = [bytes([1]) * 256 * 1024 for _ in range(16)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pass_through()
print(pass_through())
"""


def faults(first: str) -> int:
    """Pages that the system had to give for 50 times 16 pieces, after a first 50."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT.replace("{first}", first)], capture_output=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc alone")
def test_pieces_of_bodies_are_not_asked_of_the_system_again_and_again():
    before, after = faults(""), faults("assert keep_freed_memory()")

    assert before > 10_000
    assert after < 1000
