"""The long form: `python -m tests.faults --minutes 10 --seed 1`."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.campaign import Row, table, wage
from tests.faults.catalogs import catalog_of
from tests.faults.estate import Estate, estate_on
from tests.faults.every import FAULTS


@asynccontextmanager
async def _estate(database: str) -> AsyncIterator[Estate]:
    # Not below a folder of pytest's, and short: PostgreSQL's socket needs a short path.
    with tempfile.TemporaryDirectory(prefix="aquatint-faults-") as folder, catalog_of(database, Path(folder)) as catalog:
        async with estate_on(Path(folder), catalog) as estate:
            yield estate


async def _campaign(*, minutes: float, seed: int, only: list[str], databases: list[str], longer: float) -> list[Row]:
    rows: list[Row] = []
    end_s = time.monotonic() + 60 * minutes
    while not rows or time.monotonic() < end_s:
        for database in databases:
            async with _estate(database) as estate:
                for fault in FAULTS:
                    if (only and fault.code not in only) or database not in fault.possible:
                        continue
                    rows.append(await wage(fault, estate, seed=seed, longer=longer))
                    print(table(rows[-1:]).splitlines()[-1], *rows[-1].faults, sep="\n    ", flush=True)
        seed += 1
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.0, help="Begin anew, with the next seed, until they are over.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longer", type=float, default=4.0, help="Times the load of the short form.")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgres"], default=[])
    parser.add_argument("faults", nargs="*", help="Such as F1 F14; all when absent.")
    wanted = parser.parse_args()
    databases = wanted.database or ["sqlite", "postgres"]
    rows = asyncio.run(
        _campaign(minutes=wanted.minutes, seed=wanted.seed, only=wanted.faults, databases=databases, longer=wanted.longer)
    )
    print("\n" + table(rows))
    raise SystemExit(any(row.faults for row in rows))


if __name__ == "__main__":
    main()
