"""All faults, in the order of their numbers."""

from tests.faults import of_clients, of_nodes, of_routers, of_the_catalog, of_the_wire

_EVERY = (*of_nodes.FAULTS, *of_routers.FAULTS, *of_the_catalog.FAULTS, *of_the_wire.FAULTS, *of_clients.FAULTS)
FAULTS = sorted(_EVERY, key=lambda fault: int(fault.code[1:]))
