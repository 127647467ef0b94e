"""The nodes this router knows: who they are (from the catalog), what they last said, what we think of them.

Health by looks (`probe.py`) and by work (`attempts.py`): one failure is `error` (no new runs), the second `offline`
(runs in flight there are given up and tried elsewhere), the next good look `online`. One that comes and goes is held off
(`flaps.py`) while there are others, and so is a model that fails on a node (`circuit.py`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from common.catalog import Catalog, NodeRecord
from common.errors import CatalogUnavailable, NotFound
from common.logs import get_logger
from common.node_api import Holding, ModelStatus, NodeStatus
from router.candidates import Kept, Known, Sent, ask_of_job, at_work, candidate_of
from router.circuit import Circuit
from router.costs import CostBook, Learned
from router.flaps import Flaps
from router.fleet import Fleet
from router.likely import Likely
from router.node_client import Address
from router.placement import Ask, Candidate, Health
from router.together import Abilities, abilities, spokesman, together

log = get_logger(__name__)

OFFLINE_AFTER_FAILURES = 2
FULL_S = 0.05
"""How long a node that refused a run for want of a place is taken to be full, whatever else it said: that may be older."""
UNTOLD_FULL_S = 0.5
"""The same where it does not say what it does instead."""
SEEN_EVERY_S = 30.0
"""How often a node that stays well is noted as seen in the catalog."""


@dataclass(slots=True, eq=False)
class Node:
    """One node, alive in this process."""

    record: NodeRecord
    """Changed by `known_as` alone."""
    health: Health
    status: NodeStatus | None = None
    failures: int = 0
    last_error: str | None = None
    said_at_s: float = 0.0
    """When the jobs of `status` were first told of as they are, on the monotonic clock."""
    ours: dict[str, Sent] = field(default_factory=dict)
    """Runs this router sent there that are unanswered, by id. Changed by the registry alone."""
    full: bool = False
    """Whether it has just refused a run for want of a place."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the node is offline: whoever waits for its answer gives up."""
    circuits: dict[str, Circuit] = field(default_factory=dict)
    """By model, of those that failed here."""
    flaps: Flaps = field(default_factory=Flaps)
    noted_at_s: float = 0.0
    likely: Mapping[str, Learned] = field(default_factory=dict)
    """What work that it has not done is likely to cost here, by model, as placement was last told."""
    kept: Kept = field(default_factory=Kept)
    id: str = field(init=False)
    """Its id in the catalog."""
    name: str = field(init=False)
    """The name the operator gave it."""
    address: Address = field(init=False)
    """Where it is, and what opens its door."""

    def __post_init__(self) -> None:
        self.known_as(self.record)

    def known_as(self, record: NodeRecord) -> None:
        """What the catalog says of it now."""
        self.record, self.id, self.name = record, record.id, record.name
        self.address = Address(record.url, record.token)

    def held_off(self, now_s: float) -> dict[str, str]:
        """model -> why this router gives the node no runs on it at present."""
        if (why := self.flaps.refuses(now_s)) is not None:
            return {model.id: why for model in (self.status.models if self.status is not None else ())}
        reasons = {model: circuit.refuses(now_s) for model, circuit in self.circuits.items()}
        return {model: why for model, why in reasons.items() if why is not None}

    def at_work(self) -> Candidate:
        """As it was looked at last, with what it has to do now."""
        assert self.kept.idle is not None
        assert self.status is not None
        return at_work(self.kept.idle, self.status, self.ours, said_at_s=self.said_at_s, full=self.full)

    def known(self, learned: Mapping[str, Learned]) -> Known:
        """What placement goes by. learned: what its work costs, by model."""
        return Known(
            node_id=self.id,
            name=self.name,
            health=self.health,
            status=self.status,
            said_at_s=self.said_at_s,
            ours=self.ours,
            learned=learned,
            likely=self.likely,
            sitting_out=self.held_off(time.monotonic()),
            full=self.full,
        )


class Registry:
    """All nodes. `changed` is called whenever a waiting run might now find a place."""

    def __init__(self, catalog: Catalog, *, depth: int, costs: CostBook) -> None:
        """depth: runs sent to a node beyond what it runs at once. costs: what work was found to cost before."""
        self._catalog = catalog
        self.costs = costs
        self._likely = Likely(costs)
        self._depth = depth
        self.fleet = Fleet()
        """The nodes as placement sees them, kept true with every change."""
        self._nodes: dict[str, Node] = {}
        self._models: dict[bool, dict[str, ModelStatus]] = {}
        self._abilities: dict[str, Abilities] = {}
        """What `models` and `abilities` found; nothing once a node has said something new."""
        self._first_looks = asyncio.Event()
        """Set once every node was looked at that this router knew of when it began."""
        self.changed: Callable[[], None] = lambda: None

    def nodes(self) -> list[Node]:
        """Every node, by name."""
        return sorted(self._nodes.values(), key=lambda node: node.name)

    @property
    def has_looked(self) -> bool:
        """Whether this router, which may just have begun, has tried to ask all its nodes what they have."""
        return self._first_looks.is_set()

    async def first_looks(self) -> None:
        """Returns once it has."""
        await self._first_looks.wait()

    def _note_look(self) -> None:
        if not self.has_looked and all(node.status is not None or node.failures for node in self._nodes.values()):
            self._first_looks.set()

    def get(self, name_or_id: str) -> Node:
        """One node. Raises: NotFound."""
        if (node := self._nodes.get(name_or_id)) is not None:
            return node
        for node in self._nodes.values():
            if node.name == name_or_id:
                return node
        raise NotFound(f"There is no node {name_or_id!r}.", code="node_not_found")

    def sent(self, node: Node, run_id: str, ask: Ask) -> None:
        """A run of ours is on its way to a node."""
        now_s, circuit = time.monotonic(), node.circuits.get(ask.model)
        node.ours[run_id] = Sent(ask, now_s)
        if circuit is None:
            self._look_at_work(node)
        else:
            circuit.sent(run_id, now_s)
            self._look(node)

    def ended(self, node: Node, run_id: str) -> None:
        """A run of ours has left a node, which need not have told of it yet."""
        on_trial = self._gone(node, run_id)
        if node.status is not None and node.status.jobs and any(job.run_id == run_id for job in node.status.jobs):
            if node.status.jobs[0].run_id == run_id:
                # What waited behind it begins now.
                node.said_at_s = time.monotonic()
            jobs = [job for job in node.status.jobs if job.run_id != run_id]
            node.status = node.status.model_copy(update={"jobs": jobs})
        if on_trial:
            self._look(node)
        else:
            self._look_at_work(node)

    def places(self, node: Node, model: str) -> int:
        """Runs the node may hold for one more of this model to be taken there."""
        idle = node.kept.idle
        offer = None if idle is None else idle.offers.get(model)
        return 1 if idle is None or offer is None else min(idle.places, offer.places)

    @staticmethod
    def _gone(node: Node, run_id: str) -> bool:
        """Whether more than the node's work may have changed by it."""
        sent = node.ours.pop(run_id, None)
        circuit = None if sent is None else node.circuits.get(sent.ask.model)
        if circuit is not None:
            circuit.ended(run_id)
        return circuit is not None

    def turned_away(self, node: Node, run_id: str, holding: Holding | None) -> None:
        """The node had no place for a run after all. holding: what it does instead, where it says so."""
        self._gone(node, run_id)
        if node.status is not None and holding is not None:
            self._take(node, node.status.model_copy(update=dict(holding)))
        node.full = True
        full_s = UNTOLD_FULL_S if holding is None else FULL_S
        asyncio.get_running_loop().call_later(full_s, self._not_full, node)
        self._look(node)

    def _not_full(self, node: Node) -> None:
        node.full = False
        self._look(node)
        self.changed()

    def _look(self, node: Node) -> None:
        """Show placement a node as it is now, if it is registered still."""
        if self._nodes.get(node.id) is node:
            before = self.fleet.candidates.get(node.id)
            node.likely = self._likely_at(node)
            now = candidate_of(node.known(self.costs.of(node.id)), depth=self._depth, kept=node.kept)
            if before is None or before.offers is not now.offers:
                self._forget_models()
            self.fleet.put(now)

    def _look_at_work(self, node: Node) -> None:
        """The same where only what the node has to do has changed since it was looked at last."""
        if node.kept.idle is None or node.status is None:
            self._look(node)
        elif self._nodes.get(node.id) is node:
            self.fleet.put_soon(node.id, node.at_work)

    def _likely_at(self, node: Node) -> Mapping[str, Learned]:
        return self._likely.of(self.costs.device(node.id), time.monotonic())

    def _forget_models(self) -> None:
        self._models.clear()
        self._abilities.clear()

    def models(self, *, online: bool) -> Mapping[str, ModelStatus]:
        """Models by name, as one node tells of them: of nodes that are online, or that any node ever told this router of."""
        if online not in self._models:
            self._models[online] = {name: spokesman(told) for name, told in self._by_name(online=online).items()}
        return self._models[online]

    def listed(self) -> Mapping[str, ModelStatus]:
        """Models of nodes that are online by name, with all that any of these has for them."""
        return {name: together(told) for name, told in self._by_name(online=True).items()}

    def _by_name(self, *, online: bool) -> Mapping[str, list[ModelStatus]]:
        told: dict[str, list[ModelStatus]] = {}
        for node in self.nodes():
            if node.status is not None and (not online or node.health in (Health.ONLINE, Health.ERROR)):
                for model in node.status.models:
                    told.setdefault(model.id, []).append(model)
        return told

    def abilities(self, model: str) -> Abilities:
        """What the model can be asked for on any node that ever told this router of it."""
        known = self._abilities.get(model)
        if known is not None:
            return known
        statuses = [node.status for node in self._nodes.values() if node.status is not None]
        told = [each for status in statuses for each in status.models if each.id == model]
        found = abilities(told)
        if told:  # Clients can name any number of models that nobody has.
            self._abilities[model] = found
        return found

    async def keep_costs(self) -> None:
        """Write down what was learned of costs since the last time. Raises: CatalogUnavailable: it is kept for the next."""
        changes = self.costs.changes()
        await self._catalog.costs.keep(changes)
        self.costs.written(changes)

    async def refresh(self) -> None:
        """Take over what operators, or other routers, changed in the catalog."""
        # Nobody calls at the address of a node that joined by itself before an operator has said that it may be.
        records = {record.id: record for record in await self._catalog.nodes.list() if record.approved_at is not None}
        for node_id in self._nodes.keys() - records.keys():
            self._nodes.pop(node_id).lost.set()
            self.fleet.drop(node_id)
            self._forget_models()
            self.costs.forget(node_id)
        for record in records.values():
            node = self._nodes.get(record.id)
            if node is None:
                health = Health.DRAINING if record.state == Health.DRAINING else Health.PENDING
                self._nodes[record.id] = Node(record, health)
                self._look(self._nodes[record.id])
            elif (record.url, record.token, record.state) != (node.record.url, node.record.token, node.record.state):
                self._take_over(node, record)
        self._note_look()

    def _take_over(self, node: Node, record: NodeRecord) -> None:
        node.known_as(record)
        if (record.state == Health.DRAINING) != (node.health is Health.DRAINING):
            # Draining is an operator's order, so it travels by the catalog; all other states each router sees for itself.
            node.health = Health.DRAINING if record.state == Health.DRAINING else Health.PENDING
        self._look(node)

    async def seen(self, node: Node, status: NodeStatus) -> None:
        """A good look."""
        self._take(node, status)
        node.failures, node.last_error = 0, None
        self._note_look()
        self.costs.hear(node.id, status)
        self._back(node)
        before = node.health
        if node.health is not Health.DRAINING:
            node.health = Health.ONLINE
        self._look(node)
        self.changed()
        if node.health is Health.ONLINE:
            await self._note(node, before)

    def _take(self, node: Node, status: NodeStatus) -> None:
        """What a node said last is what is true of it."""
        if node.status is None or (status.jobs, status.expected) != (node.status.jobs, node.status.expected):
            # What is said again as it was has got on since: what is left of a step counts from when it began.
            node.said_at_s = time.monotonic()
        told_before = {job.run_id for job in node.status.jobs} if node.status is not None else set()
        node.status = status
        for job in status.jobs:
            sent = node.ours.get(job.run_id)
            if sent is not None and not sent.told:
                node.ours[job.run_id] = sent._replace(told=True)
            elif sent is None and job.run_id not in told_before:
                # A model that others ask for is wanted as well: or each router would evict what the next has to load again.
                ask = ask_of_job(job)
                self.fleet.demand.note(ask.model, self.fleet.work_s(ask), time.monotonic())

    async def heard(self, node: Node) -> None:
        """A sign of life: all is as it was said last."""
        if node.status is not None and node.failures:
            await self.seen(node, node.status)
            return
        if node.likely is not self._likely_at(node):
            self._look(node)
        if node.health is Health.ONLINE:
            await self._note(node, node.health)

    async def failed(self, node: Node, why: str, *, gone: bool = False) -> None:
        """A bad look, or a run that could not reach the node. gone: the connection was refused or cut, no need to wait."""
        node.failures += 1
        node.last_error = why
        self._note_look()
        before = node.health
        if node.failures >= OFFLINE_AFTER_FAILURES:
            self._lost(node)
        if node.health is not Health.DRAINING:
            node.health = Health.OFFLINE if node.failures >= OFFLINE_AFTER_FAILURES else Health.ERROR
            self._look(node)
            await self._note(node, before)
        if gone or node.failures >= OFFLINE_AFTER_FAILURES:
            self.changed()

    def model_failed(self, node: Node, model: str, run_id: str) -> None:
        """A run of `model` failed on `node` by the node's fault."""
        circuit = node.circuits.setdefault(model, Circuit())
        if circuit.failed(run_id, time.monotonic()):
            log.warning("model_held_off", node=node.name, model=model, for_s=circuit.hold_s)
            self._look_after(circuit.hold_s, node)
        self._look(node)

    def model_worked(self, node: Node, model: str, run_id: str) -> None:
        """A run of `model` succeeded on `node`."""
        circuit = node.circuits.get(model)
        if circuit is not None:
            circuit.worked(run_id, time.monotonic())
            self._look(node)

    def _look_after(self, seconds: float, node: Node) -> None:
        """Show placement the node again when it is held off no longer."""

        def look() -> None:
            self._look(node)
            self.changed()

        asyncio.get_running_loop().call_later(seconds, look)

    def _lost(self, node: Node) -> None:
        """Whoever waits for the node gives up. Where it was the last that is well, those held off are better than none."""
        if node.lost.is_set():
            return
        node.lost.set()
        node.flaps.lost(time.monotonic())
        if not any(
            each.health is Health.ONLINE and each.flaps.refuses(time.monotonic()) is None for each in self._others(node)
        ):
            for each in self._others(node):
                each.flaps.free()
                self._look(each)

    def _back(self, node: Node) -> None:
        """The node answers again."""
        if not node.lost.is_set():
            return
        node.lost.clear()
        if any(each.health is Health.ONLINE for each in self._others(node)):
            hold_s = node.flaps.back(time.monotonic())
            if hold_s:
                log.warning("node_held_off", node=node.name, for_s=hold_s)
                self._look_after(hold_s, node)

    def _others(self, node: Node) -> list[Node]:
        return [each for each in self._nodes.values() if each is not node]

    async def _note(self, node: Node, before: Health) -> None:
        now_s = time.monotonic()
        if node.health is before and (node.health is not Health.ONLINE or now_s - node.noted_at_s < SEEN_EVERY_S):
            return
        if node.health is not before:
            log.info("node_health", node=node.name, health=str(node.health), before=str(before), why=node.last_error)
        node.noted_at_s = now_s
        try:
            online = node.health is Health.ONLINE
            await self._catalog.nodes.note_health(node.id, str(node.health), error=node.last_error, seen=online)
        except (CatalogUnavailable, NotFound) as error:
            # Health is ours to judge whether or not it can be written down.
            log.warning("node_health_not_recorded", node=node.name, why=error.message)
