"""Files that go with models and are none: LoRAs, ControlNets and others, each kind in folders called after it.

A kind's folder may lie anywhere below a models folder, as ComfyUI and A1111 have them. A file's name is its path in there
without the ending. What a request names is looked up by that name and never joined to a path.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel

from node.diffusers_folder import PICKLE_SUFFIXES, check_inside
from node.hashes import digest
from node.safetensors_header import CheckpointRefused
from node.toml_files import read_toml

MAX_DEPTH = 6
WHOLE = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
"""The weights of a diffusers folder that holds one model."""
S = TypeVar("S", bound=BaseModel)
F = TypeVar("F")


class Named(Protocol):
    """What requests call by a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file lies. It is checked again before a library opens it, for files change in between."""

    name: str
    path: Path
    root: Path
    """The models folder it was found in; symbolic links must stay inside."""


def check_place(path: Path, root: Path, otherwise: str) -> None:
    """Before a file is opened: it lies in the models folder and is called a safetensors file.

    otherwise: what is said of a file that is called something else. Raises: CheckpointRefused, naming the file; OSError.
    """
    check_inside(path, root)
    if path.suffix != ".safetensors":
        raise CheckpointRefused(path, otherwise)


@dataclass(frozen=True, slots=True)
class Folders:
    """What a kind's files lie in."""

    names: frozenset[str]
    """In small letters; A1111 writes some of them in capitals."""
    whole: Collection[str] = ()
    """File names that make a folder below one thing, of the folder's name."""

    def hold(self, path: Path) -> bool:
        """Whether a folder is one of them."""
        return path.name.lower() in self.names

    def places(self, roots: Sequence[Path]) -> Iterator[Place]:
        """Every candidate below the models folders, in the order of names. OSErrors are for the caller's check of a file."""
        for root in roots:
            for path, name in self._below(root, root if self.hold(root) else None, MAX_DEPTH):
                yield Place(name, path, root)

    def look(self, roots: Sequence[Path], inspect: Callable[[Place], F]) -> tuple[list[F], list[CheckpointRefused]]:
        """What `inspect` makes of every candidate; and what it refuses, or cannot be read."""
        found, refused = [], []
        for place in self.places(roots):
            try:
                found.append(inspect(place))
            except CheckpointRefused as refusal:
                refused.append(refusal)
            except OSError as error:
                refused.append(CheckpointRefused(place.path, f"cannot be read ({error.strerror})"))
        return found, refused

    def look_by_name(
        self, roots: Sequence[Path], inspect: Callable[[Place], N], kind: str, *, reserved: Collection[str] = ()
    ) -> tuple[dict[str, N], list[CheckpointRefused]]:
        """The same where no two may have one name: the first has it, the others are refused.

        kind: what one of them is called. reserved: names that nobody may have.
        """
        named: dict[str, N] = {}

        def take(place: Place) -> None:
            file = inspect(place)
            if file.name in (*named, *reserved):
                raise CheckpointRefused(place.path, f"the name {file.name!r} is taken by another {kind}")
            named[file.name] = file

        return named, self.look(roots, take)[1]

    def said(self, path: Path, root: Path, kind: type[S]) -> S:
        """What an operator says of a file in the `NAME.toml` beside it, or beside its folder where that is one thing.

        Raises: CheckpointRefused: it cannot be read, or is not of that kind; OSError.
        """
        named = path.parent if path.name in self.whole else path.with_suffix("")
        # Not with_suffix for a folder: what follows a dot in its name is no ending.
        sidecar = named.with_name(f"{named.name}.toml")
        values = read_toml(sidecar, root)
        try:
            return kind.model_validate(values)
        except ValueError as error:
            raise CheckpointRefused(sidecar, f"not a valid sidecar: {error}") from None

    def _below(self, folder: Path, home: Path | None, depth: int) -> Iterator[tuple[Path, str]]:
        """Candidates below a folder with their names. home: the folder of the kind this is in; None when still above any."""
        if not folder.is_dir() or depth < 0:
            return
        if home is not None and folder != home:
            for name in self.whole:
                if (folder / name).exists():
                    yield folder / name, folder.relative_to(home).as_posix()
                    return
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                # Links to folders are not followed, so that a loop of links ends.
                if not entry.is_symlink():
                    yield from self._below(entry, home or (entry if self.hold(entry) else None), depth - 1)
            elif home is not None and entry.suffix.lower() in {".safetensors", *PICKLE_SUFFIXES}:
                yield entry, entry.relative_to(home).with_suffix("").as_posix()


class Sha256:
    """Hashes of files, each read once for as long as its size and time of change stay."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}

    def of(self, path: Path) -> str:
        """In hexadecimal. Blocking. Raises: OSError."""
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = digest(path)
        return self._known[key]
