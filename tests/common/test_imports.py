"""What a process imports at its beginning is not looked through for garbage, then or later."""

import subprocess
import sys

PROGRAM = """
import gc
from common.imports import uncollected

collections = []
gc.callbacks.append(lambda phase, about: collections.append(phase))
try:
    with uncollected():
        import sqlalchemy
        raise ImportError
except ImportError:
    pass
during = len(collections)
kept = gc.get_freeze_count()
class Cycle: pass
for _ in range(3):
    cycle = Cycle()
    cycle.itself = cycle
del cycle
print(during, kept > 10_000, gc.isenabled(), gc.collect() >= 3, gc.get_freeze_count() == kept)
"""


def test_imports_are_not_collected_and_what_comes_after_them_is():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["0", "True", "True", "True", "True"]
