"""One model as several nodes tell of it: clients ask the fleet, not a node. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.node_api import ModelStatus

EACH_NODES_OWN = ("loras", "controls", "upscalers")
"""Capabilities that are lists of what lies beside the model on a node: names, or objects with a `name`."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model can be asked for, on one node or another."""

    tasks: frozenset[str]
    loras: frozenset[str]
    """Their names."""
    extras: frozenset[str]
    """What else its runs may need, in the words of `common.node_api.extras_of`."""


def abilities(told: Sequence[ModelStatus]) -> Abilities:
    """What all of them together say."""
    return Abilities(
        tasks=frozenset(task for each in told for task in each.tasks),
        loras=frozenset(name for each in told for name in each.loras),
        extras=frozenset(words for each in told for words in each.extras),
    )


def spokesman(told: Sequence[ModelStatus]) -> ModelStatus:
    """What one node says of it, where all say much the same: one that has it on its device, if any."""
    return next((each for each in told if each.resident), told[0])


def together(told: Sequence[ModelStatus]) -> ModelStatus:
    """What it can be asked for on any node. A request goes to one that has all it needs."""
    first = spokesman(told)
    if len(told) == 1:
        return first
    lists = {name: [each.capabilities[name] for each in told if name in each.capabilities] for name in EACH_NODES_OWN}
    own = {name: _each_once(listed) for name, listed in lists.items() if listed}
    tasks = list(dict.fromkeys(task for each in (first, *told) for task in each.tasks))
    return first.model_copy(update={"tasks": tasks, "capabilities": first.capabilities | own})


def _each_once(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """By name. Where nodes have unlike things under one name, what the first of them says of it."""
    named: dict[str, Any] = {}
    for listed in lists:
        for each in listed:
            named.setdefault(str(each["name"] if isinstance(each, dict) else each), each)
    return [each for _, each in sorted(named.items())]
