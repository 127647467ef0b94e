"""The short form, on all kinds of estates. `pytest -s` shows the table."""

import pytest

from tests.faults.campaign import Fault, Row, wage
from tests.faults.estate import Estate
from tests.faults.every import FAULTS
from tests.faults.kinds import KINDS

SEED = 1
TRIED = [(kind, fault) for kind in KINDS for fault in FAULTS if kind in fault.kinds]


@pytest.mark.parametrize(
    ("estate", "fault"),
    TRIED,
    ids=[f"{fault.code}-{kind}" for kind, fault in TRIED],
    indirect=["estate"],
    scope="module",
)
async def test_nothing_is_lost_and_every_invariant_holds(estate: Estate, fault: Fault, rows: list[Row]):
    row = await wage(fault, estate, seed=SEED)
    rows.append(row)

    assert row.good >= 2 * fault.good
    assert not row.faults, "\n".join(row.faults)
