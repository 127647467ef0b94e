"""What a run has on the device beside its model: nets of its own, and LoRAs, which stay for the runs that come."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from common.images_api.loras import MAX_LORAS

MAX_IDLE_LORA_BYTES = 1024**3
"""What LoRAs that no run is using may hold beside one model: a dozen of SDXL's, or thirty of SD 1.5's."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Bytes of device memory."""

    nets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By kind (ControlNets, for example) and name. Of a kind those of the last run that had any stay."""
    loras: Mapping[str, int] = field(default_factory=dict)
    """By sha256."""

    @property
    def names(self) -> frozenset[str]:
        """All of it, as a memory limit keeps it."""
        return frozenset(name for nets in self.nets.values() for name in nets) | frozenset(self.loras)

    @property
    def shown(self) -> str:
        """For people."""
        names = [name for nets in self.nets.values() for name in nets]
        return ", ".join([*names, f"{len(self.loras)} LoRAs"] if self.loras else names)


class KeptLoras:
    """Those beside one loaded pipeline. The node decides which leave; the worker drops none by itself.

    One that a worker failed to load is counted until it leaves, for the node is not told how far it came.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, int] = OrderedDict()
        """By sha256, the least recently used first."""

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(self._kept.values())

    def missing_bytes(self, wanted: Mapping[str, int]) -> int:
        """Of those wanted that are not there yet."""
        return sum(size for sha256, size in wanted.items() if sha256 not in self._kept)

    def use(self, wanted: Mapping[str, int]) -> None:
        """A run has them now."""
        for sha256, size_bytes in wanted.items():
            self._kept[sha256] = size_bytes
            self._kept.move_to_end(sha256)

    def oldest(self, spared: Collection[str] = ()) -> str | None:
        """The one to leave next; None when there is none beside the spared."""
        return next((sha256 for sha256 in self._kept if sha256 not in spared), None)

    def excess(self, wanted: Mapping[str, int]) -> list[str]:
        """Those that leave in any case when a run comes with others: what is kept is bounded."""
        idle = [sha256 for sha256 in self._kept if sha256 not in wanted]
        count, size_bytes = len(idle) + len(wanted), sum(self._kept[sha256] for sha256 in idle)
        leaving = []
        for sha256 in idle:
            if count <= MAX_LORAS and size_bytes <= MAX_IDLE_LORA_BYTES:
                break
            leaving.append(sha256)
            count, size_bytes = count - 1, size_bytes - self._kept[sha256]
        return leaving

    def drop(self, sha256: str) -> None:
        """It is not there any more."""
        self._kept.pop(sha256, None)
