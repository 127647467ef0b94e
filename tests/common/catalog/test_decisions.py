"""Why runs went where they went, written down for many at once."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from common.catalog import Catalog, NewRun
from common.catalog.database import Database, parse_url
from common.catalog.decisions import Decisions
from common.catalog.runs import Runs


async def test_however_many_are_written_at_once_the_statement_is_the_same_and_is_built_once(
    catalog: Catalog, catalog_url: str, new_run: Callable[..., NewRun]
):
    runs = [new_run() for _ in range(9)]
    for run in runs:
        await catalog.runs.open(run)
    database = Database(parse_url(catalog_url))
    statements: list[str] = []

    @event.listens_for(database._engine.sync_engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT"):
            statements.append(statement)

    decisions = Decisions(database, Runs(database))
    for some in (runs[:1], runs[1:3], runs[3:]):
        await decisions.add({(run.id, 1): {"node": "a"} for run in some})

    assert len(set(statements)) == 1
    assert [await decisions.of(run.id) for run in runs] == [[{"node": "a"}]] * 9
    await database.close()


async def test_one_that_is_there_already_stays_as_it_is_and_those_of_runs_that_are_gone_are_dropped(
    catalog: Catalog, new_run: Callable[..., NewRun]
):
    run = new_run()
    await catalog.runs.open(run)
    await catalog.decisions.add({(run.id, 1): {"node": "a"}})

    await catalog.decisions.add({(run.id, 1): {"node": "b"}, (run.id, 2): {"node": "c"}, ("run_gone", 1): {"node": "a"}})

    assert await catalog.decisions.of(run.id) == [{"node": "a"}, {"node": "c"}]
    assert await catalog.decisions.of("run_gone") == []
