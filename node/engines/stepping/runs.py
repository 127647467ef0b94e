"""A run at work among others, and what is told of it in the end."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from common.errors import AquatintError
from node.engines.base import Made, Member, PassTime
from node.engines.prompts import Prompt


@dataclass(slots=True, eq=False)
class Run:
    """One member and what is there of it."""

    member: Member
    prompt: Prompt | None = None
    waiting: deque[int] = field(default_factory=deque)
    """Numbers of the seeds whose pictures are not begun."""
    images: dict[int, Image.Image] = field(default_factory=dict)
    """By the number of its seed."""
    denoised: int = 0
    """Pictures whose last step is made."""
    encode_s: float = 0.0
    denoise_s: float = 0.0
    """Of every step with a picture of it, whoever else was in it."""
    decode_s: list[float] = field(default_factory=list)
    own_s: float = 0.0
    steps_s: dict[int, list[float]] = field(default_factory=dict)
    """Pictures in a step -> seconds of each such step that this run is to tell of."""
    too_large: list[int] = field(default_factory=list)
    """Sizes of steps that did not fit the memory."""
    batch: int = 1
    sampler: str = ""
    sampler_steps: int = 0
    """Of one picture, as its solver counts them."""
    tiled: bool = False
    error: AquatintError | None = None

    @property
    def complete(self) -> bool:
        return self.error is not None or len(self.images) == len(self.member.spec.seeds)

    def tell_step(self, made: int) -> None:
        """Tell that `made` steps of its pictures at work are made. Raises: what its caller raises, RunCancelled above all."""
        forwards = self.member.spec.forwards
        self.member.on_step(self.denoised * forwards + made, forwards * len(self.member.spec.seeds))

    def stepped(self, pictures: int, own: int, seconds: float) -> None:
        """A step with `own` pictures of it among `pictures` took so long."""
        self.batch = max(self.batch, pictures)
        self.denoise_s += seconds
        self.own_s += seconds * own / pictures

    def outcome(self) -> Made | AquatintError:
        if self.error is not None:
            return self.error
        assert self.prompt is not None
        timings_s = {"encode": self.encode_s, "denoise": self.denoise_s, "decode": sum(self.decode_s)}
        return Made(
            [self.images[index] for index in range(len(self.member.spec.seeds))],
            timings_s,
            self.prompt.tokens,
            self.prompt.truncated,
            self.sampler,
            vae_tiled=self.tiled,
            batch=self.batch,
            passes=self._passes(),
            own_s=self.encode_s + self.own_s + sum(self.decode_s),
        )

    def _passes(self) -> tuple[PassTime, ...]:
        """What whole passes would have taken by the steps that were seen: of sizes that lasted for half of a picture."""
        whole = {size: steps_s for size, steps_s in self.steps_s.items() if 2 * len(steps_s) >= self.sampler_steps}
        return (
            *(PassTime(size, None) for size in self.too_large),
            *(PassTime(size, self._pass_s(size, steps_s)) for size, steps_s in whole.items()),
        )

    def _pass_s(self, size: int, steps_s: Sequence[float]) -> float:
        return statistics.median(steps_s) * self.sampler_steps + size * statistics.mean(self.decode_s)
