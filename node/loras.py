"""Finds LoRA files below the models folders and looks them up by the names requests use.

A file lies in a folder called `loras` (ComfyUI) or `Lora` (A1111), anywhere below a models folder. Its name is its path
in there without the ending; a folder that holds diffusers' `pytorch_lora_weights.safetensors` is one LoRA of the
folder's name. `NAME.toml` beside a file may say more. What a request names is looked up here and never joined to a path.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from common.errors import LoraRefused
from common.images_api import LoraAsk
from node.extras import Folders, Place, Sha256, check_place
from node.hashes import AUTOV2_DIGITS
from node.lora_family import LoraShape, shape_of
from node.pipeline_classes import Family
from node.safetensors_header import LOADED_BYTES, CheckpointRefused, read_header_and_metadata

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
FOLDERS = Folders(frozenset({"loras", "lora"}), whole=(DIFFUSERS_FILE,))
MIN_HASH_DIGITS = AUTOV2_DIGITS
"""AutoV2, which CivitAI shows for every file, is the first ten digits of its sha256."""


class LoraSidecar(BaseModel):
    """What an operator says about one LoRA, in a TOML file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^<>:\\/\s][^<>:\\]*$")
    """The name requests use, instead of the file's."""
    aliases: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    """Words its pictures were captioned with."""
    air: str | None = Field(default=None, max_length=200, pattern=r"^urn:air:[^<>\s]+$")
    """CivitAI's name of it, such as `urn:air:sdxl:lora:civitai:12@34`."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA on disk that passed every check of its header."""

    name: str
    path: Path
    root: Path
    """The models folder it was found in; symbolic links must stay inside."""
    shape: LoraShape
    sidecar: LoraSidecar = field(default_factory=LoraSidecar)

    @property
    def place(self) -> Place:
        """What a worker needs to find it."""
        return Place(self.name, self.path, self.root)

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of its weights on a device when loaded as `dtype`."""
        return self.shape.elements * LOADED_BYTES[dtype]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every name it answers to, hashes aside. Without its folders too, for A1111 knows no others."""
        air = [] if self.sidecar.air is None else [self.sidecar.air]
        return tuple(dict.fromkeys((self.name, self.name.rpartition("/")[2], *self.sidecar.aliases, *air)))


def inspect_lora(path: Path, *, root: Path, name: str) -> LoraFile:
    """Check one file. Called at the scan and again right before a load, for files change in between.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    check_place(path, root, "a LoRA's file name must end in .safetensors; pickle formats are never loaded")
    shape = shape_of(*read_header_and_metadata(path))
    if isinstance(shape, str):
        raise CheckpointRefused(path, shape)
    said = FOLDERS.said(path, root, LoraSidecar)
    return LoraFile(said.name or name, path, root, shape, said)


class Loras:
    """Every LoRA of a node, by every name."""

    def __init__(self, files: Sequence[LoraFile], refused: Sequence[CheckpointRefused] = ()) -> None:
        self._by_name = {each.name: each for each in files}
        self._by_key = {key: each for each in reversed(files) for key in each.keys} | self._by_name
        self._sha256 = Sha256()
        self.refused = tuple(refused)

    def __iter__(self) -> Iterator[LoraFile]:
        return iter(self._by_name.values())

    def fitting(self, family: Family) -> tuple[LoraFile, ...]:
        """Those made for a family, by name."""
        return tuple(sorted((each for each in self if each.shape.fits(family)), key=lambda each: each.name))

    def choose(self, asks: Sequence[LoraAsk], family: Family) -> list[tuple[LoraFile, LoraAsk]]:
        """The files a request means. Blocking: a hash is looked for in files that were never read before.

        Raises: LoraRefused: not here, made for another family, or the same one twice.
        """
        chosen: list[tuple[LoraFile, LoraAsk]] = []
        for ask in asks:
            file = self._by_key.get(ask.name) or self._by_hash(ask.name)
            if file is None:
                raise LoraRefused(f"There is no LoRA {ask.name[:80]!r} here.{self._similar(ask.name, family)}")
            if not file.shape.fits(family):
                raise LoraRefused(
                    f"The LoRA {file.name!r} was made for {file.shape.family}; this model is {family.value}.",
                    code="lora_incompatible",
                )
            if any(file is other for other, _ in chosen):
                raise LoraRefused(f"The LoRA {file.name!r} is named twice.", code="invalid_value")
            chosen.append((file, ask))
        return chosen

    def _similar(self, name: str, family: Family) -> str:
        words = name.lower()
        near = [each.name for each in self.fitting(family) if words in each.name.lower() or each.name.lower() in words]
        return f" Do you mean {', '.join(map(repr, near[:3]))}?" if near else ""

    def _by_hash(self, digits: str) -> LoraFile | None:
        digits = digits.lower()
        if len(digits) < MIN_HASH_DIGITS or set(digits) - set("0123456789abcdef"):
            return None
        return next((each for each in self if self.sha256(each).startswith(digits)), None)

    def sha256(self, file: LoraFile) -> str:
        """Of its bytes, in hexadecimal. Blocking. Raises: OSError."""
        return self._sha256.of(file.path)


def find_loras(roots: Sequence[Path]) -> Loras:
    """Look through the models folders. Of two LoRAs with one name the first is taken, the other told as refused."""
    by_name, refused = FOLDERS.look_by_name(
        roots, lambda place: inspect_lora(place.path, root=place.root, name=place.name), "LoRA"
    )
    return Loras(list(by_name.values()), refused)
