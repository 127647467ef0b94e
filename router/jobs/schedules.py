"""Jobs that are put down by the clock: one of each in a period, whatever the number of routers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.settings import RouterSection

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job once in so many days. Periods are counted from 1970, so all routers mean the same one."""

    kind: str
    every_days: float
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def only_one(self) -> str:
        """As for those that somebody asks for."""
        return self.kind


def period_of(schedule: Schedule, now_s: float) -> str:
    """The name of the period that a time in unix seconds is in."""
    return f"{schedule.kind}/{schedule.every_days:g}d/{int(now_s // (schedule.every_days * DAY_S))}"


def schedules_of(own: RouterSection) -> list[Schedule]:
    """What a router's settings ask for."""
    found = []
    if own.retention_days is not None:
        found.append(Schedule("retention", 1, {"older_than_days": own.retention_days}))
    if own.sweep_store_days is not None:
        found.append(Schedule("sweep", own.sweep_store_days))
    if own.backup_days is not None:
        found.append(Schedule("backup", own.backup_days, {} if own.backup_keep is None else {"keep": own.backup_keep}))
    return found
