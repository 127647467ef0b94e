"""The fault campaign: real processes under load, one fault after another, and after each the invariants.

Two routers (`aquatint router`), three stand-ins for nodes, SQLite or PostgreSQL, a folder of assets; a proxy before each
node for faults of the wire. Or real nodes, with each process another user's. A fault is done from outside: a signal, a closed
socket, a full disk, a stopped database, a wrong clock.

    TEST_FAULTS=required python -m pytest tests/faults  the short form, in CI
    python -m tests.faults --minutes 10 --seed 1        the long form, by hand; the table, and exit 1 where one is broken
    python -m tests.faults F1 F14 --estate postgres     some of them
    python -m tests.faults F27 --estate real --longer 62    a rolling restart, twice, under more than 2,000 requests

    every.py       the list of faults: of_nodes.py, of_the_wire.py, ...
    campaign.py    one fault: load, the blow, recovery, quiet, invariants; the table
    checks.py      the invariants, I1 to I14; backups.py: I13
    load.py        the clients
    estate.py      the processes; proxy.py: what lies between router and node; catalogs.py: the databases
    real.py        an estate of real nodes; users.py: a machine with many users; kinds.py: all kinds of estates
    waiting.py     many that wait at once, measured by hand

F29, the failure of each single call of a request, is tried in one process: tests/router/test_every_call.py. The long form
tries every fault on all kinds of estates on which it is possible (`of_the_catalog.py`, of_nodes.py and of_clocks.py say why
some are of one). Bounds of time are for a machine that has nothing else to do; on one that is slow before a fault begins
they are as much wider, and the load as much thinner.

The table's `recovered s` is counted from the end of a fault's cause, or from its beginning where the cause stays, to the
last request that was refused or failed; 0 where there was none. Every random choice hangs on the seed.
"""
