"""The short form, on SQLite and on PostgreSQL. `pytest -s` shows the table."""

import pytest

from tests.faults.campaign import Fault, Row, wage
from tests.faults.estate import Estate
from tests.faults.every import FAULTS

SEED = 1
TRIED = [(database, fault) for database in ("sqlite", "postgres") for fault in FAULTS if database in fault.databases]


@pytest.mark.parametrize(
    ("estate", "fault"),
    TRIED,
    ids=[f"{fault.code}-{database}" for database, fault in TRIED],
    indirect=["estate"],
    scope="module",
)
async def test_nothing_is_lost_and_every_invariant_holds(estate: Estate, fault: Fault, rows: list[Row]):
    row = await wage(fault, estate, seed=SEED)
    rows.append(row)

    assert row.good >= 2 * fault.good
    assert not row.faults, "\n".join(row.faults)
