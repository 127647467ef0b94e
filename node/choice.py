"""Which file of a model is loaded, and by which engine, where there is more than one.

What fits the memory comes first. Of that, a GPU takes diffusers, which stops at any step and makes the same pictures as
other nodes with diffusers; a CPU takes sd.cpp, which computes on weights as they are stored and needs half the memory or
less. Of several files for one engine the largest that fits is the least quantised.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from node.checkpoints import Checkpoint
from node.engine_names import EngineName


@dataclass(frozen=True, slots=True)
class Choice:
    """One checkpoint, and why this one."""

    checkpoint: Checkpoint
    reason: str


def choose(
    checkpoints: Sequence[Checkpoint],
    *,
    engines: Collection[EngineName],
    device: str,
    dtype: str,
    budget_bytes: int | None,
) -> Choice | None:
    """The one to load; None when no engine for any of them is installed.

    device: cuda, mps or cpu. dtype: what diffusers would load it as. budget_bytes: for weights; None without a bound.
    """
    runnable = [each for each in checkpoints if each.engine in engines]
    if not runnable:
        return None
    if len(runnable) == 1:
        missing = sorted({each.engine.value for each in checkpoints} - {runnable[0].engine.value})
        others = f"; there are others for {', '.join(missing)}, which is not installed" if missing else ""
        return Choice(runnable[0], f"the only one{others}")
    bytes_of: Callable[[Checkpoint], int] = lambda each: each.memory_bytes(dtype)  # noqa: E731
    fitting = [each for each in runnable if budget_bytes is None or bytes_of(each) <= budget_bytes]
    if not fitting:
        smallest = min(runnable, key=bytes_of)
        return Choice(smallest, f"the smallest of {len(runnable)}; none fits {budget_bytes:,} bytes")
    first = EngineName.SDCPP if device == "cpu" else EngineName.DIFFUSERS
    best = max(fitting, key=lambda each: (each.engine is first, bytes_of(each)))
    bound = "" if budget_bytes is None else f" that fits {budget_bytes:,} bytes"
    if best.engine is not first:
        return Choice(best, f"the largest of {len(runnable)}{bound}; none for {first} does")
    return Choice(best, f"{first} comes first on {device}; the largest for it{bound}")
