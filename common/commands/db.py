"""`aquatint db`: the catalog's schema."""

import asyncio

import typer

app = typer.Typer(no_args_is_help=True, help="The catalog: bring its schema up to date, check it.")


@app.command("upgrade")
def upgrade() -> None:
    """Create or upgrade the catalog; safe to run at any time and from several places at once."""
    from common.catalog import migrate
    from common.settings import CommonSettings

    settings = CommonSettings.load()
    asyncio.run(migrate(settings.catalog_url))
    typer.echo("The catalog is up to date.")


@app.command("check")
def check() -> None:
    """Exit code 0 if the catalog answers and its schema is the one this version needs, else 1."""
    from common.catalog import Catalog
    from common.settings import CommonSettings

    async def look() -> None:
        catalog = await Catalog.open(CommonSettings.load().catalog_url)
        await catalog.ping()
        await catalog.close()

    asyncio.run(look())
    typer.echo("The catalog answers and its schema is current.")
