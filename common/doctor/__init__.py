"""What `aquatint doctor` looks at: each look is a function that gives findings.

`deaths.py` reads how a process ended, `machine.py` looks at memory, clock, ports and GPUs. Looks at settings, disk, catalog
and engines stand with the command.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: what was looked at, whether it is well ("ok", "warning", "error"), and what to do if not."""

    check: str
    verdict: str
    found: str
    advice: str | None = None
