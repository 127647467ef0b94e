"""All faults, in the order of their numbers."""

from tests.faults import of_clients, of_clocks, of_nodes, of_routers, of_the_catalog, of_the_wire

_KINDS = (of_nodes, of_routers, of_the_catalog, of_the_wire, of_clients, of_clocks)
FAULTS = sorted((fault for kind in _KINDS for fault in kind.FAULTS), key=lambda fault: int(fault.code[1:]))
