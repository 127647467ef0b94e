"""Places for the runs that routers send, taken before a request is read: one that is sent on is not read in vain."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from common.errors import NodeBusy
from common.node_api import Holding, NodeStatus


class Places:
    """How many there are, each router says of its own runs: it knows what it sends, and to which models."""

    def __init__(
        self, held: Callable[[], Mapping[str, bool]], state: Callable[[], NodeStatus], *, is_open: Callable[[], bool]
    ) -> None:
        """held: the runs that are here, by id: whether each has a place still, or has left the device. is_open: whether any
        new run is taken.
        """
        self._held = held
        self._state = state
        self._is_open = is_open
        self._coming: list[str] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called when one has come or gone."""

    @property
    def expected(self) -> int:
        """Runs whose requests are still being read."""
        held = self._held()
        return sum(run_id not in held for run_id in self._coming)

    @contextmanager
    def taken(self, run_id: str, most: int) -> Iterator[None]:
        """Keep a place for a run until it is held. most: runs that may be here with it. Raises: NodeBusy."""
        if not self._is_open() or sum(self._held().values()) + self.expected >= most:
            state = self._state()
            held = Holding(phase=state.phase, jobs=state.jobs, expected=state.expected)
            raise NodeBusy(held.model_dump(mode="json"))
        self._coming.append(run_id)
        self.on_change()
        try:
            yield
        finally:
            self._coming.remove(run_id)
            self.on_change()
