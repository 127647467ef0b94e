"""Whatever dies, leaves or comes back, no place is lost and none is given twice: the queue's pure parts, tried at random."""

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.fleet import Fleet, bind
from router.line import Line, Waiting
from router.placement import Ask, Candidate, Offer, Placement, with_run

MODELS = ("small", "large")
PLACES = 2


def idle(name: str) -> Candidate:
    """A node that has both models and nothing to do."""
    offer = Offer(frozenset({"generation"}), pace=1.0, load_s=3.0, memory_bytes=1, places=PLACES)
    return Candidate(name, name, dict.fromkeys(MODELS, offer), PLACES, resident=("small",))


@dataclass
class Place:
    """A run at a node."""

    waiting: Waiting
    node: str


class Places(RuleBasedStateMachine):
    """A line and a fleet, as the queue and the registry use them, with nodes that are killed and clients that leave."""

    @initialize()
    def begin(self) -> None:
        self.line: Line[Waiting] = Line()
        self.fleet = Fleet()
        self.nodes = ["a", "b", "c"]
        self.held: list[Place] = []
        self.ended = 0
        self.asked = 0
        self.now_s = 0.0
        for name in self.nodes:
            self.fleet.put(idle(name))

    @rule(key=st.sampled_from(["x", "y", None]), model=st.sampled_from(MODELS), units=st.floats(0.1, 100))
    def asks(self, key: str | None, model: str, units: float) -> None:
        ask = Ask(model, "generation", units)
        self.asked += 1
        waiting = Waiting(ask, self.now_s, self.fleet.work_s(ask), key)
        if len(self.line):
            self.line.add(waiting)
            self._pump()
            return
        placement = self.fleet.place(ask, self.now_s)
        if placement.has_place:
            self.line.pass_through(waiting)
            self._hold(waiting, placement)
        else:
            self.line.add(waiting)

    @rule(pick=st.integers(0, 1000))
    def ends(self, pick: int) -> None:
        if self.held:
            place = self.held.pop(pick % len(self.held))
            self.ended += 1
            self.line.correct(place.waiting, 1.0)
            self._show(place.node)
            self._pump()

    @rule(pick=st.integers(0, 1000))
    def leaves(self, pick: int) -> None:
        waiting = list(self.line)
        if waiting:
            self.line.leave(waiting[pick % len(waiting)])
            self.ended += 1

    @rule(name=st.sampled_from("abc"))
    def dies(self, name: str) -> None:
        if name in self.nodes:
            self.nodes.remove(name)
            self.fleet.drop(name)
            lost = [place for place in self.held if place.node == name]
            self.held = [place for place in self.held if place.node != name]
            for place in lost:
                # Tried elsewhere, as dispatch does it: it waits again, not for that node.
                ask = place.waiting.ask._replace(tried=place.waiting.ask.tried | {name})
                self.line.add(replace(place.waiting, ask=ask))
            self._pump()

    @rule(name=st.sampled_from("abc"))
    def comes(self, name: str) -> None:
        if name not in self.nodes:
            self.nodes.append(name)
            self._show(name)
            self._pump()

    @rule(seconds=st.floats(0, 20))
    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self._pump()

    def _show(self, name: str) -> None:
        """Tell the fleet what a node holds, from what is known to be there."""
        if name not in self.nodes:
            return
        candidate = idle(name)
        for place in self.held:
            if place.node == name:
                candidate = with_run(place.waiting.ask, candidate, now_s=self.now_s)
        self.fleet.put(candidate)

    def _pump(self) -> None:
        def grant(waiting: Waiting, placement: Placement) -> None:
            self.line.serve(waiting)
            self._hold(waiting, placement)

        bind(self.line, self.fleet, self.now_s, grant=grant)

    def _hold(self, waiting: Waiting, placement: Placement) -> None:
        assert placement.node_id in self.nodes
        assert placement.node_id not in waiting.ask.tried
        self.held.append(Place(waiting, placement.node_id))
        self._show(placement.node_id)

    @invariant()
    def every_run_is_in_one_place(self) -> None:
        assert len(self.line) + len(self.held) + self.ended == self.asked
        assert len(set(map(id, self.line))) == len(list(self.line)) == len(self.line)

    @invariant()
    def no_node_holds_more_than_it_has_places_for(self) -> None:
        for name in self.nodes:
            count = sum(place.node == name for place in self.held)
            assert count <= PLACES
            # Claims of runs that wait are gone when the round is over: what is shown is what is held.
            assert self.fleet.candidates[name].held == count

    @invariant()
    def nobody_waits_where_a_place_is_free(self) -> None:
        for waiting in self.line:
            free = [name for name in self.nodes if self.fleet.candidates[name].has_place and name not in waiting.ask.tried]
            best = self.fleet.place(waiting.ask, self.now_s)
            assert not free or not best.has_place or best.node_id not in free

    @invariant()
    def work_that_waits_is_counted_once(self) -> None:
        total_s = sum(waiting.work_s for waiting in self.line)
        assert abs(self.line.work_s - total_s) <= 1e-6 * max(1.0, total_s)


Places.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestPlaces = Places.TestCase
