"""How others choose a node, as their documents and sources have it: at once, on arrival. All see the fleet as it is."""

import zlib
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import count
from random import Random

from router.simulator.nodes import SimNode
from router.simulator.workload import Arrival

Choose = Callable[[Arrival], SimNode]
WARM_LIMIT = 5
"""Ray Serve: a replica takes up to this many requests at once."""
BOUND = 1.25
"""Bounded hashing: no node holds more than this times the mean."""
POINTS_PER_NODE = 64


def random_node(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """A Kubernetes service."""
    return lambda arrival: rng.choice(nodes)


def round_robin(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """The default of nginx, of Traefik and of most."""
    turns = count()
    return lambda arrival: nodes[next(turns) % len(nodes)]


def least_request(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """HAProxy's leastconn, LiteLLM's least-busy; ties at random."""
    return lambda arrival: min(nodes, key=lambda node: (len(node.jobs), rng.random()))


def two_choices(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """P2C: the emptier of two at random (Envoy, SGLang, Traefik)."""
    return lambda arrival: min(_two(nodes, rng), key=lambda node: len(node.jobs))


def declared_cost(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """Least outstanding steps x pixels x n, whatever the model (llm-d)."""
    return lambda arrival: min(nodes, key=lambda node: (node.units, rng.random()))


def warm_first(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """Nodes that have the model loaded, while one of them has room; P2C among them (Ray Serve's multiplexing)."""

    def choose(arrival: Arrival) -> SimNode:
        roomy = [node for node in nodes if len(node.jobs) < WARM_LIMIT]
        warm = [node for node in roomy if arrival.model in node.planned]
        return min(_two(warm or roomy or nodes, rng), key=lambda node: len(node.jobs))

    return choose


def bounded_hash(nodes: Sequence[SimNode], rng: Random) -> Choose:
    """Consistent hashing by model with bounded load: the first node on the ring that is not overfull."""
    ring = sorted((zlib.crc32(f"{node.id}/{i}".encode()), node.id) for node in nodes for i in range(POINTS_PER_NODE))
    points, by_id = [point for point, _ in ring], {node.id: node for node in nodes}

    def choose(arrival: Arrival) -> SimNode:
        most = BOUND * (sum(len(node.jobs) for node in nodes) + 1) / len(nodes)
        start = bisect(points, zlib.crc32(arrival.model.encode()))
        for step in range(len(ring)):
            node = by_id[ring[(start + step) % len(ring)][1]]
            if len(node.jobs) + 1 <= most:
                return node
        return min(nodes, key=lambda node: len(node.jobs))

    return choose


def _two(nodes: Sequence[SimNode], rng: Random) -> Sequence[SimNode]:
    return rng.sample(nodes, min(2, len(nodes)))


POLICIES: dict[str, Callable[[Sequence[SimNode], Random], Choose]] = {
    "random": random_node,
    "round robin": round_robin,
    "P2C": two_choices,
    "least request": least_request,
    "declared cost": declared_cost,
    "warm first + P2C": warm_first,
    "bounded hashing": bounded_hash,
}
