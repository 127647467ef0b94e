"""Runs that come to our own denoising loop, and what becomes of them."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from common.errors import AquatintError
from node.engines.base import Made, Member, RunSpec
from tests.node.bench import Bench
from tests.node.test_together import PROMPTS, unstopped


@dataclass
class Door:
    """An entrance through which runs come when so many steps were made, counted by the first of all."""

    coming: dict[int, list[RunSpec]]
    batch: int = 8
    on_step: Callable[[str, int], None] = lambda prompt, step: None
    """Told the prompt of each run and its steps made."""
    steps: int = 0
    outcomes: dict[str, Made | AquatintError] = field(default_factory=dict)
    """By prompt, in the order of their ends."""
    ended_at: dict[str, int] = field(default_factory=dict)
    previews: dict[str, list[Image.Image]] = field(default_factory=dict)
    told: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def arrived(self) -> Sequence[Member]:
        due = [at for at in self.coming if at <= self.steps]
        return [self._member(spec) for at in due for spec in self.coming.pop(at)]

    def wait(self, others: Collection[Future[Any]]) -> None:
        wait(others, return_when=FIRST_COMPLETED)

    def ended(self, member: Member, outcome: Made | AquatintError) -> None:
        self.outcomes[member.spec.prompt] = outcome
        self.ended_at[member.spec.prompt] = self.steps

    def _member(self, spec: RunSpec) -> Member:
        first = not self.told
        told = self.told.setdefault(spec.prompt, [])

        def on_step(step: int, steps: int) -> None:
            self.steps += first
            told.append((step, steps))
            self.on_step(spec.prompt, step)

        return Member(spec, on_step, lambda index, image: self.previews.setdefault(spec.prompt, []).append(image))


def opened(bench: Bench, door: Door) -> Door:
    spec = next(spec for specs in door.coming.values() for spec in specs)
    bench.engine.generate_in_steps(spec, door)
    return door


def alone(bench: Bench, spec: RunSpec) -> Made:
    """As the pipeline itself makes it."""
    return bench.engine.generate(spec, None, unstopped, lambda index, image: None)


def four(bench: Bench, name: str, **changes: Any) -> list[RunSpec]:
    """Runs of different steps, which come one after another."""
    return [
        bench.spec(name, prompt=prompt, seeds=(seed,), steps=steps, **changes)
        for seed, (prompt, steps) in enumerate(zip(PROMPTS, (8, 4, 5, 6), strict=True))
    ]
