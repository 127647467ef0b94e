"""The training loop that all three stages share: resumable, and the same after a resume as without one.

Nothing random survives a step: every step draws its pictures and its noise from generators seeded by (seed, step). So a
checkpoint is weights, averaged weights, optimizer moments and a step number, in one safetensors file that is replaced
in one rename, and going on from it repeats exactly what an uninterrupted run would have done.
"""

import contextlib
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

STATE_FILE = "state.safetensors"
LOSS_LOG = "loss.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the outcome of a stage, apart from its code."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    averaging: float = 0.999
    """How much of the averaged weights stays each step (EMA); the averaged weights are what a stage hands on."""
    weight_decay: float = 0.01
    largest_gradient: float = 1.0
    seed: int = 0
    precision: str = "bf16"
    """bf16: matrix products of the forward pass in bfloat16, weights and sums in fp32; fp32: everything."""

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 2 % (Loshchilov and Hutter, arXiv:1608.03983)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True, slots=True)
class Dice:
    """The randomness of one step."""

    scenes: random.Random
    noise: torch.Generator


class PlanChanged(Exception):
    """A half-trained stage was found that was started under another plan. Name another folder or the same plan."""

    def __init__(self, folder: Path, found: str, asked: str) -> None:
        super().__init__(f"{self.__doc__} In {folder}: {found}; asked now: {asked}.")


def dice(seed: int, step: int) -> Dice:
    """Generators that depend on nothing but seed and step."""
    key = zlib.crc32(f"{seed}:{step}".encode())
    return Dice(random.Random(key), torch.Generator().manual_seed(key))


class Averaged:
    """Modules under training with a running average of their weights."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.live: dict[str, nn.Parameter] = {
            f"{part}.{name}": parameter
            for part, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.mean = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int, averaging: float) -> None:
        """Early on the average follows quickly, or it would remember the untrained weights for long."""
        share = 1 - min(averaging, (1 + step) / (10 + step))
        for name, parameter in self.live.items():
            self.mean[name].lerp_(parameter, share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the modules have their averaged weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self.put(self.mean)
        try:
            yield
        finally:
            self.put(kept)

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(weights[name])


def train(
    modules: dict[str, nn.Module],
    loss_of: Callable[[Dice], Tensor],
    plan: Plan,
    folder: Path,
    *,
    save_every: int = 250,
    sample: Callable[[], Image.Image] | None = None,
    sample_every: int = 1000,
) -> None:
    """Train until `plan.steps` steps are done, going on from what `folder` holds. Leaves the averaged weights in place.

    modules: the parts to train; only parameters with requires_grad are. loss_of: one step's scalar loss.
    sample: draws a sheet of samples with the averaged weights; kept in `folder` by step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = Averaged(modules)
    optimizer = torch.optim.AdamW(
        weights.live.values(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
    )
    done = _resume(folder, plan, weights, optimizer)
    log = _loss_log(folder, done)
    device = next(iter(weights.live.values())).device
    with _progress() as progress, log.open("a", buffering=1) as lines:
        bar = progress.add_task(folder.name, total=plan.steps, completed=done, loss=math.nan)
        for step in range(done, plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate_at(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                loss = loss_of(dice(plan.seed, step))
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(weights.live.values(), plan.largest_gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            weights.update(step, plan.averaging)
            lines.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            progress.update(bar, advance=1, loss=loss.item())
            if (step + 1) % save_every == 0 or step + 1 == plan.steps:
                _save(folder, plan, step + 1, weights, optimizer)
            last_of_many = step + 1 == plan.steps > sample_every
            if sample is not None and ((step + 1) % sample_every == 0 or last_of_many):
                with weights.in_place(), torch.no_grad():
                    sample().save(folder / f"samples-{step + 1:06}.png")
    weights.put(weights.mean)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )


def _loss_log(folder: Path, done: int) -> Path:
    """The loss log, without what was written after the checkpoint: those steps are about to be repeated."""
    log = folder / LOSS_LOG
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    write_whole(log, "".join(line for line in lines[:done] if line.endswith("\n")).encode())
    return log


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its name holds the old content or the new, never a part."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    unfinished.replace(path)


def _save(folder: Path, plan: Plan, step: int, weights: Averaged, optimizer: torch.optim.Optimizer) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in weights.live.items():
        moments = optimizer.state[parameter]
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"mean/{name}"] = weights.mean[name]
        tensors[f"first/{name}"] = moments["exp_avg"]
        tensors[f"second/{name}"] = moments["exp_avg_sq"]
    unfinished = folder / (STATE_FILE + ".tmp")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, unfinished, {"step": str(step), "plan": _written(plan)})
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(folder / STATE_FILE)


def _resume(folder: Path, plan: Plan, weights: Averaged, optimizer: torch.optim.Optimizer) -> int:
    """Put back what was saved; the number of steps that are done."""
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as saved:
        metadata = saved.metadata()
        if metadata["plan"] != _written(plan):
            raise PlanChanged(folder, metadata["plan"], _written(plan))
        step = int(metadata["step"])
        weights.put({name: saved.get_tensor(f"weight/{name}") for name in weights.live})
        for name, parameter in weights.live.items():
            weights.mean[name].copy_(saved.get_tensor(f"mean/{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": saved.get_tensor(f"first/{name}").to(parameter.device),
                "exp_avg_sq": saved.get_tensor(f"second/{name}").to(parameter.device),
            }
    return step


def saved_mean(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a stage, finished or not, by part and name."""
    with safe_open(folder / STATE_FILE, framework="pt") as saved:
        return {key.removeprefix("mean/"): saved.get_tensor(key) for key in sorted(saved.keys()) if key.startswith("mean/")}


def _written(plan: Plan) -> str:
    return json.dumps(asdict(plan), sort_keys=True)
