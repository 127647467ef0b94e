"""The fault campaign: real processes under load, one fault after another, and after each the invariants.

Two routers (`aquatint router`), three stand-ins for nodes, SQLite or PostgreSQL, a folder of assets; a proxy before each
node for faults of the wire. A fault is done from outside: a signal, a closed socket, a full disk, a stopped database.

    TEST_FAULTS=required python -m pytest tests/faults  the short form, in CI
    python -m tests.faults --minutes 10 --seed 1        the long form, by hand; the table, and exit 1 where one is broken
    python -m tests.faults F1 F14 --database postgres   some of them

    every.py       the list of faults: of_nodes.py, of_the_wire.py, ...
    campaign.py    one fault: load, the blow, recovery, quiet, invariants; the table
    checks.py      the invariants, I1 to I12
    load.py        the clients
    estate.py      the processes; proxy.py: what lies between router and node; catalogs.py: the databases
    waiting.py     many that wait at once, measured by hand

F29, the failure of each single call of a request, is tried in one process: tests/router/test_every_call.py. Engines that die
or hang (F11) are in tests/e2e/test_fleet.py and tests/node. The long form tries every fault on both kinds of catalog, but for
those that are of one (`of_the_catalog.py`, and what is stopped in the middle of a commit, see of_nodes.py).

The table's `recovered s` is counted from the end of a fault's cause, or from its beginning where the cause stays, to the
last request that was refused or failed; 0 where there was none. Every random choice hangs on the seed.
"""
