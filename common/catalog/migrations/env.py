"""How Alembic reaches the database: on the connection `migrate` hands over, or by the URL of a configuration file."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from common.catalog.database import make_engine, parse_url
from common.catalog.tables import Table


def run(connection: Connection) -> None:
    """Run the migrations asked for. They become part of the connection's transaction if it is in one."""
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_by_url() -> None:
    """Run on a connection of our own, for the `alembic` command."""
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None, "the configuration names no sqlalchemy.url"
    engine = make_engine(parse_url(url), migrating=True)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_by_url())
