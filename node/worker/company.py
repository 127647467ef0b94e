"""The runs of one share, in the worker, while an engine makes them step by step: more of them may come from the node.

The node sends each order of a share the same way, whether the share is at work or not: an order that finds it at work joins
it at the next step, and one that comes too late begins it anew. So neither side has to know how far the other is.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from threading import Condition
from typing import Any

from common.errors import AquatintError, RunCancelled
from node.engines.base import Made, Member, RunSpec
from node.worker.frames import Frame


class Orders:
    """The orders that wait, in their order. Filled and thinned by one thread, taken by another."""

    def __init__(self) -> None:
        self._waiting: deque[Frame] = deque()
        self._changed = Condition()

    def put(self, frame: Frame) -> None:
        """Append one."""
        with self._changed:
            self._waiting.append(frame)
            self._changed.notify()

    def get(self) -> Frame:
        """Take the next; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            return self._waiting.popleft()

    def next_of(self, share: int) -> Frame | None:
        """Take the next if it is there and belongs to a share; who is behind another order waits for that."""
        with self._changed:
            return self._waiting.popleft() if self._is_next(share) else None

    def wait(self, share: int, others: Collection[Future[Any]]) -> None:
        """Returns when the next is there and belongs to a share, or one of some others is done."""
        for each in others:
            each.add_done_callback(self._look_again)
        with self._changed:
            self._changed.wait_for(lambda: self._is_next(share) or any(each.done() for each in others))

    def drop(self, call: int) -> bool:
        """Take one call out of what waits. False when it is not there: it is at work, or done."""
        with self._changed:
            for place, frame in enumerate(self._waiting):
                if call not in calls_of(frame.header):
                    continue
                left = [each for each in frame.header.get("members", ()) if each["call"] != call]
                if left:
                    self._waiting[place] = Frame(frame.header | {"members": left}, frame.blobs)
                else:
                    del self._waiting[place]
                return True
        return False

    def _is_next(self, share: int) -> bool:
        return bool(self._waiting) and self._waiting[0].header.get("share") == share

    def _look_again(self, _: Future[Any]) -> None:
        with self._changed:
            self._changed.notify()


def calls_of(order: dict[str, Any]) -> list[int]:
    """The numbers of the calls in one order."""
    return [each["call"] for each in order.get("members", [order])]


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
        self.batch = 1

    def arrived(self) -> Sequence[Member]:
        members: list[Member] = []
        while (order := self._taken()) is not None:
            self.batch = max(self.batch, order["batch"])
            for each in order["members"]:
                member = self._member_of(each["call"], RunSpec.from_json(each["spec"]))
                if member is not None:
                    self._here[id(member)] = (each["call"], member)
                    members.append(member)
        return members

    def wait(self, others: Collection[Future[Any]]) -> None:
        self._orders.wait(self._share, others)

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
