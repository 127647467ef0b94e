"""A Dockerfile as data: its stages and steps, with build arguments put in."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: RUN, COPY, ENV ... flags: its `--name=value`, several of a name in their order."""

    name: str
    text: str
    flags: tuple[tuple[str, str], ...] = ()

    def words(self) -> list[str]:
        """Its arguments: of the JSON form, or split as a shell splits."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)


def stages(path: Path, arguments: Mapping[str, str]) -> list[Stage]:
    """The stages of a file. arguments: as `docker build --build-arg` takes them."""
    found: list[Stage] = []
    known: dict[str, str] = {}
    for step in _steps(path.read_text()):
        if step.name == "FROM":
            words = expanded(step.text, known).split()
            found.append(Stage(words[0], words[2] if len(words) > 1 else str(len(found))))
        elif step.name == "ARG" and not found:
            name, _, default = step.text.partition("=")
            known[name] = arguments.get(name, default)
        else:
            found[-1].steps.append(step)
    return found


def needed(all_stages: list[Stage]) -> list[Stage]:
    """The last stage and those it is made of, in order: what a builder really builds."""
    by_name = {stage.name: stage for stage in all_stages}
    wanted, todo = set[str](), [all_stages[-1]]
    while todo:
        stage = todo.pop()
        wanted.add(stage.name)
        sources = [value for step in stage.steps for flag, value in step.flags if flag == "from"]
        todo += [by_name[name] for name in (stage.base, *sources) if name in by_name]
    return [stage for stage in all_stages if stage.name in wanted]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` put in."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def _steps(text: str) -> list[Step]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [_step(line) for line in joined.splitlines() if line.strip()]


def _step(line: str) -> Step:
    name, _, text = line.strip().partition(" ")
    flags = []
    while match := re.match(r"--([\w-]+)=(\S+)\s+", text):
        flags.append((match[1], match[2]))
        text = text[match.end() :]
    return Step(name.upper(), text.strip(), tuple(flags))
