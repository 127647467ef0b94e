"""The runs of one share, in the worker, while an engine makes them step by step: more of them may come from the node.

The node sends each order of a share the same way, whether the share is at work or not: an order that finds it at work joins
it at the next step, and one that comes too late begins it anew. So neither side has to know how far the other is.
"""

import queue
from collections.abc import Callable, Sequence
from typing import Any

from common.errors import AquatintError, RunCancelled
from node.engines.base import Made, Member, RunSpec
from node.worker.frames import Frame


class Orders:
    """The orders that wait, in their order. Filled by one thread, taken by another."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._held: Frame | None = None
        """Looked at, and found to be for later."""

    def put(self, frame: Frame) -> None:
        """Append one."""
        self._queue.put(frame)

    def get(self) -> Frame:
        """Take the next; waits for it."""
        held, self._held = self._held, None
        return self._queue.get() if held is None else held

    def next_of(self, share: int) -> Frame | None:
        """Take the next if it is there and belongs to a share; who is behind another order waits for that."""
        if self._held is None:
            try:
                self._held = self._queue.get_nowait()
            except queue.Empty:
                return None
        if self._held.header.get("share") != share:
            return None
        return self.get()


class Company:
    """See node.engines.base.Entrance."""

    def __init__(
        self,
        first: dict[str, Any],
        orders: Orders,
        *,
        member_of: Callable[[int, RunSpec], Member | None],
        deliver: Callable[[int, RunSpec, Made], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        """first: the header of the order it begins with.

        member_of: of the number of a call; None when it is cancelled already, and has been told so.
        """
        self._share: int = first["share"]
        self._next: dict[str, Any] | None = first
        self._orders = orders
        self._member_of = member_of
        self._deliver = deliver
        self._fail = fail
        self._here: dict[int, tuple[int, Member]] = {}
        """By identity of a member."""
        self.calls: list[int] = []
        """Of everyone who was ever here."""
        self.batch = 1

    def arrived(self) -> Sequence[Member]:
        members: list[Member] = []
        while (order := self._taken()) is not None:
            self.batch = max(self.batch, order["batch"])
            for each in order["members"]:
                self.calls.append(each["call"])
                member = self._member_of(each["call"], RunSpec.from_json(each["spec"]))
                if member is not None:
                    self._here[id(member)] = (each["call"], member)
                    members.append(member)
        return members

    def ended(self, member: Member, outcome: Made | AquatintError) -> None:
        call, _ = self._here.pop(id(member))
        if isinstance(outcome, Made):
            self._deliver(call, member.spec, outcome)
        elif not isinstance(outcome, RunCancelled):
            # Who was cancelled has been told so when it was.
            self._fail(call, outcome)

    def fail_all(self, error: Exception) -> None:
        """Tell everyone who is here, and who is still to come with the first order, that the whole company failed."""
        self.arrived()
        for call, _ in self._here.values():
            self._fail(call, error)
        self._here.clear()

    def _taken(self) -> dict[str, Any] | None:
        first, self._next = self._next, None
        if first is not None:
            return first
        frame = self._orders.next_of(self._share)
        return None if frame is None else frame.header
