"""A server may have as many clients wait as the system lets it."""

import subprocess
import sys

PROGRAM = """
import resource
from common.web.connections import allow_open_files

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)
"""


def test_the_first_limit_of_open_files_is_raised_as_far_as_is_allowed():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    soft, hard, before = map(int, told.stdout.split())

    assert soft == min(hard, 65_536)
    assert hard == before
