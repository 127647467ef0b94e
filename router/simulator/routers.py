"""A simulated router: the real line, the real fleet, the real binding, on what nodes told it some time ago."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from router.fleet import Fleet, bind
from router.forecast import Forecast
from router.line import Line, Waiting
from router.placement import Ask, Placement
from router.simulator.nodes import TASK, Job, Report, SimNode, seen
from router.simulator.workload import Arrival


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Waiting):
    """A waiting arrival."""

    arrival: Arrival


Send = Callable[[SimNode, Arrival, Ask], bool]
"""Give a node a run; False when it has no place after all."""


class SimRouter:
    """See the module."""

    def __init__(self, nodes: Sequence[SimNode], number: int, *, splits: bool) -> None:
        self._number = number
        self._splits = splits
        self.line: Line[Ticket] = Line()
        self.fleet = Fleet()
        self._nodes = {node.id: node for node in nodes}
        self._told = {node.id: Report((), node.idle.resident) for node in nodes}
        self._ours: dict[str, dict[int, Job]] = {node.id: {} for node in nodes}
        """Runs sent and unanswered, by the arrival's identity."""
        self._ended: dict[str, set[int]] = {node.id: set() for node in nodes}
        for node in nodes:
            self.fleet.put(node.idle)

    def arrive(self, arrival: Arrival, now_s: float) -> None:
        """One request, in parts where that is sooner."""
        ask = Ask(arrival.model, TASK, arrival.estimate_s, pictures=arrival.pictures)
        plan = self.fleet.plan(ask, now_s) if self._splits and not len(self.line) else None
        for each in [arrival] if plan is None else [arrival.shared(part.pictures) for part in plan.parts]:
            self._add(each, now_s)

    def _add(self, arrival: Arrival, now_s: float) -> None:
        ask = Ask(arrival.model, TASK, arrival.estimate_s, pictures=arrival.pictures)
        work_s = self.fleet.work_s(ask)
        self.fleet.demand.note(arrival.model, work_s, now_s)
        self.line.add(Ticket(ask=ask, arrived_s=now_s, work_s=work_s, key=arrival.key, arrival=arrival))

    def foresee(self, arrival: Arrival, now_s: float) -> None:
        """Tell one that has just come when it will be done, unless it was given a place: then that was told."""
        upto = list(takewhile(lambda ticket: ticket.arrival is not arrival, self.line))
        if len(upto) < len(self.line):
            coming = next(islice(self.line, len(upto), None))
            arrival.told_s = Forecast().play([*upto, coming], self.fleet, now_s)[-1].finish_s

    def pump(self, now_s: float, send: Send) -> None:
        """Give places away, as often as a node surprises us by having none."""
        surprised = True

        def grant(ticket: Ticket, placement: Placement) -> None:
            nonlocal surprised
            assert placement.node_id is not None
            node = self._nodes[placement.node_id]
            if not send(node, ticket.arrival, ticket.ask):
                surprised = True
                self.told(node, node.report(), now_s)
                return
            self.line.serve(ticket)
            if ticket.arrival.at_s == now_s and placement.terms is not None:
                ticket.arrival.told_s = placement.terms.finish_s
            offer, resident = node.idle.offers[ticket.ask.model], self.fleet.candidates[node.id].resident
            load_s = 0.0 if ticket.ask.model in resident else offer.load_s
            self._ours[node.id][id(ticket.arrival)] = Job(ticket.arrival, ticket.ask, offer.own_s(ticket.ask) + load_s)
            self._look(node, now_s)

        while surprised:
            surprised = False
            bind(self.line, self.fleet, now_s, grant=grant)

    def told(self, node: SimNode, report: Report, now_s: float) -> None:
        """A node's word, as it was when it left the node."""
        told_before = {id(job.arrival) for job in self._told[node.id].jobs}
        for job in report.jobs:
            if job.arrival.router != self._number and id(job.arrival) not in told_before:
                self.fleet.demand.note(job.ask.model, self.fleet.work_s(job.ask), now_s)
        self._told[node.id] = report
        self._ended[node.id] &= {id(job.arrival) for job in report.jobs}
        self._look(node, now_s)

    def answered(self, node: SimNode, arrival: Arrival, now_s: float) -> None:
        """A run of ours has ended there, whatever the node's last word was."""
        if self._ours[node.id].pop(id(arrival), None) is not None:
            self._ended[node.id].add(id(arrival))
            self._look(node, now_s)

    def _look(self, node: SimNode, now_s: float) -> None:
        report, ended = self._told[node.id], self._ended[node.id]
        jobs = [job for job in report.jobs if id(job.arrival) not in ended]
        known = {id(job.arrival) for job in report.jobs}
        jobs += [job for identity, job in self._ours[node.id].items() if identity not in known]
        if jobs and jobs[0].began_s is None:
            # Nobody told that it began, but nothing is before it.
            jobs[0].began_s = now_s
        self.fleet.put(seen(node.idle, report.resident, jobs, now_s))
