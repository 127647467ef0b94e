"""What an operator has told: one tree out of a file and the environment, with the place each value came from.

A later source wins over an earlier one: the file that `AQUATINT_CONFIG` names, then variables. Any variable may be given
as a file instead, `AQUATINT__NODE__TOKEN_FILE=/run/secrets/token`, which is how Docker and Kubernetes hand over secrets.
Nothing raises here: each fault is noted, so that all of them can be shown at once.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PREFIX = "AQUATINT__"
CONFIG_VARIABLE = "AQUATINT_CONFIG"
FILE_ENDING = "_FILE"
SECTIONS = ("router", "node")
"""Sections of the tree; a process reads its own and leaves the others' to them."""

Place = tuple[str, ...]
"""Where a setting stands in the tree: `("database_url",)`, `("router", "port")`."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was found."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Place, str] = field(default_factory=dict)
    """Place -> the variable, or the file and its key."""
    faults: list[str] = field(default_factory=list)

    def put(self, place: Place, value: Any, source: str) -> None:
        """A value, over what an earlier source said."""
        branch = self.values
        for part in place[:-1]:
            branch = branch.setdefault(part, {})
        branch[place[-1]] = value
        self.sources[place] = source

    def source_of(self, location: tuple[int | str, ...]) -> str:
        """Who said what pydantic finds wrong at `location`; the variable's name where nobody said anything."""
        place = tuple(str(part) for part in location)
        while place:
            if place in self.sources:
                return self.sources[place]
            place = place[:-1]
        return variable(tuple(str(part) for part in location))


def variable(place: Place) -> str:
    """`("router", "port")` as the environment spells it."""
    return PREFIX + "__".join(place).upper()


def places(tree: type[BaseModel]) -> Iterator[tuple[Place, FieldInfo]]:
    """Every setting of a tree."""
    for name, info in tree.model_fields.items():
        if name in SECTIONS and isinstance(info.annotation, type):
            for own, inner in info.annotation.model_fields.items():
                yield (name, own), inner
        else:
            yield (name,), info


def told(tree: type[BaseModel], environ: Mapping[str, str]) -> Told:
    """Read all sources for `tree`. Sections that are not part of it are other processes' business."""
    found = Told()
    known = dict(places(tree))
    foreign = {section for section in SECTIONS if section not in tree.model_fields}
    if environ.get(CONFIG_VARIABLE):
        _read_file(Path(environ[CONFIG_VARIABLE]), known, foreign, found)
    _read_environment(environ, known, foreign, found)
    return found


def _read_file(path: Path, known: Mapping[Place, FieldInfo], foreign: set[str], found: Told) -> None:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        found.faults.append(f"{CONFIG_VARIABLE}: {path}: {getattr(error, 'strerror', None) or error}")
        return
    for name, value in content.items():
        if name in foreign:
            continue
        branch = {(name, key): each for key, each in value.items()} if name in SECTIONS and isinstance(value, dict) else None
        for place, each in (branch if branch is not None else {(name,): value}).items():
            source = f"{path}: {'.'.join(place)}"
            if place in known:
                found.put(place, each, source)
            else:
                found.faults.append(f"{source}: no such setting")


def _read_environment(environ: Mapping[str, str], known: Mapping[Place, FieldInfo], foreign: set[str], found: Told) -> None:
    # Strict about our own prefix, two underscores deep, and about nothing else: beside a service called "aquatint-router"
    # Kubernetes sets AQUATINT_ROUTER_PORT=tcp://..., and beside one called "router" ROUTER_PORT.
    ours = {name.upper(): name for name in environ if name.upper().startswith(PREFIX)}
    for upper, name in sorted(ours.items()):
        place = tuple(upper.removeprefix(PREFIX).lower().split("__"))
        if place[0] in foreign or not environ[name]:
            # An empty variable says nothing: that is how compose files pass on what nobody has set.
            continue
        if place in known:
            found.put(place, _parsed(environ[name], known[place]), name)
            continue
        of_file = (*place[:-1], place[-1].removesuffix(FILE_ENDING.lower()))
        if of_file == place or of_file not in known:
            found.faults.append(f"{name}: no such setting")
        elif variable(of_file) in ours:
            found.faults.append(f"{name}: {variable(of_file)} is set as well; one of them must go")
        else:
            _read_value_file(Path(environ[name]), of_file, known[of_file], name, found)


def _read_value_file(path: Path, place: Place, info: FieldInfo, name: str, found: Told) -> None:
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        found.faults.append(f"{name}: {path}: {getattr(error, 'strerror', None) or 'not a text file'}")
        return
    # Editors and `echo` end a file with a newline that is no part of the secret.
    found.put(place, _parsed(content.rstrip("\r\n"), info), name)


def _parsed(text: str, info: FieldInfo) -> Any:
    """A variable's text; lists and tables are written as JSON. What is no JSON stays text, and pydantic says so."""
    kinds = (info.annotation, *get_args(info.annotation))
    if not any(get_origin(kind) in (list, tuple, dict, set, frozenset) for kind in kinds):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_secret(name: str, environ: Mapping[str, str]) -> str | None:
    """A secret outside the tree: `NAME`, or the content of the file `NAME_FILE`.

    Raises: OSError: there is no such file.
    """
    if environ.get(name):
        return environ[name]
    path = environ.get(name + FILE_ENDING)
    return Path(path).read_text().rstrip("\r\n") if path else None
