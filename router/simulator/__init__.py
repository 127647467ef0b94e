"""A fleet that exists only as numbers, under the router's own placement and order: `aquatint bench placement`.

    workload.py   models, arrivals, traces
    nodes.py      a node: what it holds, what is on its device, what it tells, as it changes
    routers.py    a router: the real `Line`, `Fleet` and `bind`, on what nodes told it
    policies.py   how others choose, for comparison
    run.py        one simulated run on a clock of its own; cases.py: those of the table
    cli.py        the command

Nothing here is a model of `placement.py`, `fleet.py` or `line.py`: it is them, so a change of policy shows in the table
before it ships. Simulated are the devices: first come first served, one run at a time, least recently used models leave.
"""
