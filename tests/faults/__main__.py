"""The long form: `python -m tests.faults --minutes 10 --seed 1`."""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import Row, table, wage
from tests.faults.every import FAULTS
from tests.faults.kinds import KINDS, estate_of


async def _campaign(*, minutes: float, seed: int, only: list[str], kinds: list[str], longer: float) -> list[Row]:
    rows: list[Row] = []
    end_s = time.monotonic() + 60 * minutes
    while not rows or time.monotonic() < end_s:
        for kind in kinds:
            tried = [fault for fault in FAULTS if kind in fault.possible and (not only or fault.code in only)]
            if not tried:
                continue
            with tempfile.TemporaryDirectory(prefix="aquatint-faults-") as folder:
                async with estate_of(kind, Path(folder)) as estate:
                    for fault in tried:
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
    parser.add_argument("--estate", action="append", choices=KINDS, default=[], help="All kinds when absent.")
    parser.add_argument("faults", nargs="*", help="Such as F1 F14; all when absent.")
    wanted = parser.parse_args()
    kinds = wanted.estate or list(KINDS)
    rows = asyncio.run(
        _campaign(minutes=wanted.minutes, seed=wanted.seed, only=wanted.faults, kinds=kinds, longer=wanted.longer)
    )
    print("\n" + table(rows))
    raise SystemExit(any(row.faults for row in rows))


if __name__ == "__main__":
    main()
