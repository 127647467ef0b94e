"""The order of waiting runs: by priority, fair between keys in predicted device seconds, and short work first within a round.

Every key has an account of the device seconds it was given, corrected by what its runs really took. Accounts are compared
in rounds of `ROUND_S`: a key that was given less comes first, and one that was idle starts where the others are, so that it
does not save up. It is deficit round robin with accounts instead of turns.

Within a round the order is `arrival + SHORT_FIRST x work`: short runs overtake long ones, and nothing is overtaken by
what arrived more than `SHORT_FIRST x work` after it, so nothing starves. Those of one key that ask for the same stay in the
order in which they arrived, whatever was learned of their work between one and the next.

Each priority is a lane of its own, with an account like a key's, in which a second weighs the less the higher it is
(`WEIGHTS`). The highest lane of a round goes first, so what is urgent passes at once; lanes that are asked for all the time
share the devices as 16 to 4 to 1, so none of them starves.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from operator import attrgetter
from typing import Generic, TypeVar

from router.placement import Ask
from router.wishes import Priority

MIN_REMEMBERED = 512
"""Accounts that are kept before idle ones are looked for."""
SHORT_FIRST = 2.0
MAX_PATIENCE_S = 300.0
"""No run is overtaken by one that came this much later, however long it takes itself."""
WEIGHTS = {Priority.HIGH: 16.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
"""Shares of the devices where all priorities wait all the time."""
ROUND_S = 10.0
"""Device seconds that accounts may differ by before it counts. Shorter is fairer; longer lets more short runs pass."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One run that waits. Times are on the caller's clock."""

    ask: Ask
    arrived_s: float
    work_s: float
    """Predicted seconds of device time."""
    key: str | None = None
    """Whose share of the devices it takes."""
    priority: Priority = Priority.NORMAL
    place: "tuple[float, float, int] | None" = field(default=None, init=False)
    """While it is in line: its turn within a round, when it arrived, and a number that no other has."""
    alike: "list[Waiting]" = field(default_factory=list, init=False)
    """Meanwhile, those of its key that ask for the same, with itself, in the order in which they arrived."""


W = TypeVar("W", bound=Waiting)
_PLACE: Callable[[Waiting], tuple[float, float, int]] = attrgetter("place")
_ARRIVED_S: Callable[[Waiting], float] = attrgetter("arrived_s")


@dataclass(slots=True, eq=False)
class _Account(Generic[W]):
    """One key: the device seconds it was given, and what it waits for, in its order."""

    given_s: float = 0.0
    queue: list[W] = field(default_factory=list)
    alike: dict[Ask, list[Waiting]] = field(default_factory=dict)
    """The same by what they ask for, in the order in which they arrived."""
    turn: "_Turn[W] | None" = None
    """Of the first in `queue`; None where that is empty."""


_Turn = tuple[int, float, int, float, int, _Account[W]]
"""Of one run among all keys: its round, its order within it, a number that no other has; the device seconds that its key was
given before it, its index in the key's queue, and the key's account."""


class Line(Generic[W]):
    """See the module. Holds no clock and wakes nobody."""

    def __init__(self) -> None:
        self._lanes = {priority: _Lane[W]() for priority in Priority}
        self._count = 0
        self._horizon_s = 0.0
        """The account of the lane that was served last, in weighed seconds."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, waiting: Waiting) -> bool:
        return waiting.place is not None

    @property
    def work_s(self) -> float:
        """Predicted device seconds of all that waits."""
        return sum(lane.work_s for lane in self._lanes.values())

    def add(self, waiting: W) -> None:
        """Let a run wait."""
        lane = self._lanes[waiting.priority]
        if not len(lane):
            lane.given_s = max(lane.given_s, self._horizon_s)
        lane.add(waiting)
        self._count += 1

    def leave(self, waiting: W) -> None:
        """Take a run out that gave up."""
        self._lanes[waiting.priority].leave(waiting)
        self._count -= 1

    def serve(self, waiting: W) -> None:
        """Take a run out that was given a place, at the cost of its key and its lane."""
        lane = self._lanes[waiting.priority]
        lane.serve(waiting)
        self._count -= 1
        self._charge(lane, waiting)

    def pass_through(self, waiting: W) -> None:
        """Of one that is given a place as it comes, while nobody waits: the same as `add` and `serve`, without a turn."""
        lane = self._lanes[waiting.priority]
        lane.given_s = max(lane.given_s, self._horizon_s)
        lane.pass_through(waiting)
        self._charge(lane, waiting)

    def _charge(self, lane: "_Lane[W]", waiting: W) -> None:
        self._horizon_s = max(self._horizon_s, lane.given_s)
        lane.given_s += waiting.work_s / WEIGHTS[waiting.priority]

    def correct(self, waiting: W, took_s: float) -> None:
        """A run that was served has ended: what it took is charged."""
        lane = self._lanes[waiting.priority]
        lane.correct(waiting, took_s)
        lane.given_s += (took_s - waiting.work_s) / WEIGHTS[waiting.priority]

    def before_of_its_key(self, waiting: W) -> int:
        """How many of the same key and priority are before it: the least that can be."""
        return self._lanes[waiting.priority].before_of_its_key(waiting)

    def front(self, limit: int) -> list[W]:
        """The first `limit` runs in the order in which they would be served one after another."""
        return list(islice(self, limit))

    def __iter__(self) -> Iterator[W]:
        """All of them, in order. Changes meanwhile are not allowed for."""
        given_s = {priority: lane.given_s for priority, lane in self._lanes.items()}
        orders = {priority: iter(lane) for priority, lane in self._lanes.items() if len(lane)}
        if len(orders) == 1:
            [only] = orders.values()
            yield from only
            return
        while orders:
            first = min(orders, key=lambda priority: (int(given_s[priority] // ROUND_S), priority))
            waiting = next(orders[first], None)
            if waiting is None:
                del orders[first]
            else:
                given_s[first] += waiting.work_s / WEIGHTS[first]
                yield waiting


class _Lane(Generic[W]):
    """Those of one priority."""

    def __init__(self) -> None:
        self.given_s = 0.0
        """Weighed device seconds that it was given."""
        self._accounts: dict[str | None, _Account[W]] = {}
        self._turns: list[_Turn[W]] = []
        """The first of each key, in order: however many keys wait, whoever comes first is found without asking all of them."""
        self._numbers = count()
        self._count = 0
        self._horizon_s = 0.0
        """The account of the key that was served last: where keys that come back begin."""
        self._remembered = MIN_REMEMBERED
        self.work_s = 0.0
        """Predicted device seconds of all that waits."""

    def __len__(self) -> int:
        return self._count

    def add(self, waiting: W) -> None:
        """Let a run wait."""
        account = self._account(waiting.key)
        if not account.queue:
            account.given_s = max(account.given_s, self._horizon_s)
        waiting.alike = account.alike.setdefault(_kind(waiting), [])
        waiting.place = self._place(waiting, waiting.alike)
        insort(account.queue, waiting, key=_PLACE)
        self._take_turn(account)
        self._count += 1
        self.work_s += waiting.work_s

    def _place(self, waiting: W, alike: list[Waiting]) -> tuple[float, float, int]:
        """Puts it among those that ask for the same; never before one of them that arrived earlier, nor behind a later one."""
        index = bisect_right(alike, waiting.arrived_s, key=_ARRIVED_S)
        order_s = waiting.arrived_s + min(MAX_PATIENCE_S, SHORT_FIRST * waiting.work_s)
        if index > 0:
            order_s = max(order_s, _PLACE(alike[index - 1])[0])
        if index < len(alike):
            order_s = min(order_s, _PLACE(alike[index])[0])
        alike.insert(index, waiting)
        return order_s, waiting.arrived_s, next(self._numbers)

    def leave(self, waiting: W) -> None:
        """Take a run out that gave up."""
        self._take_turn(self._left(waiting))

    def _left(self, waiting: W) -> _Account[W]:
        account = self._accounts[waiting.key]
        del account.queue[self.before_of_its_key(waiting)]
        alike, waiting.place = waiting.alike, None
        # Nearly always the first of them.
        index = 0 if alike[0] is waiting else bisect_left(alike, waiting.arrived_s, key=_ARRIVED_S)
        del alike[alike.index(waiting, index)]
        if not alike:
            del account.alike[_kind(waiting)]
        self._count -= 1
        self.work_s = self.work_s - waiting.work_s if self._count else 0.0
        return account

    def serve(self, waiting: W) -> None:
        """Take a run out that was given a place, at its key's cost."""
        account = self._left(waiting)
        self._charge(account, waiting)
        self._take_turn(account)

    def pass_through(self, waiting: W) -> None:
        """As `Line.pass_through`."""
        account = self._account(waiting.key)
        account.given_s = max(account.given_s, self._horizon_s)
        self._charge(account, waiting)

    def _charge(self, account: _Account[W], waiting: W) -> None:
        self._horizon_s = max(self._horizon_s, account.given_s)
        account.given_s += waiting.work_s
        if len(self._accounts) > 2 * self._remembered:
            self._forget_idle()

    def correct(self, waiting: W, took_s: float) -> None:
        """A run that was served has ended: its key is charged what it took."""
        account = self._accounts.get(waiting.key)
        if account is not None:
            account.given_s += took_s - waiting.work_s
            if account.queue:
                self._take_turn(account)

    def before_of_its_key(self, waiting: W) -> int:
        """How many of the same key are before it."""
        return bisect_left(self._accounts[waiting.key].queue, _PLACE(waiting), key=_PLACE)

    def __iter__(self) -> Iterator[W]:
        """All of them, in order. Changes meanwhile are not allowed for."""
        firsts = iter(self._turns)
        first = next(firsts, None)
        later: list[_Turn[W]] = []
        while first is not None or later:
            if first is not None and (not later or first < later[0]):
                turn, first = first, next(firsts, None)
            else:
                turn = heapq.heappop(later)
            _, _, _, given_s, index, account = turn
            waiting = account.queue[index]
            if index + 1 < len(account.queue):
                heapq.heappush(later, self._turn(account, index + 1, given_s + waiting.work_s))
            yield waiting

    def _take_turn(self, account: _Account[W]) -> None:
        """Put a key among the others, once its account or its queue has changed."""
        turn = self._turn(account, 0, account.given_s) if account.queue else None
        if turn == account.turn:
            return
        if account.turn is not None:
            del self._turns[bisect_left(self._turns, account.turn)]
        if turn is not None:
            insort(self._turns, turn)
        account.turn = turn

    @staticmethod
    def _turn(account: _Account[W], index: int, given_s: float) -> _Turn[W]:
        order_s, _, number = _PLACE(account.queue[index])
        return (int(given_s // ROUND_S), order_s, number, given_s, index, account)

    def _account(self, key: str | None) -> _Account[W]:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(self._horizon_s)
        return account

    def _forget_idle(self) -> None:
        """Keys that wait for nothing and are not ahead: they would begin at the horizon all the same."""
        horizon_s = self._horizon_s
        self._accounts = {key: each for key, each in self._accounts.items() if each.queue or each.given_s > horizon_s}
        self._remembered = max(MIN_REMEMBERED, len(self._accounts))


def _kind(waiting: Waiting) -> Ask:
    """What those that ask for the same have in common: not where they were tried."""
    return waiting.ask._replace(tried=frozenset()) if waiting.ask.tried else waiting.ask
