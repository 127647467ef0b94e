"""`aquatint router`: the router as a process."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from router.settings import RouterSettings


def router(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the router: the public API in front of the nodes."""
    import asyncio

    from common.imports import uncollected

    with uncollected():
        from common import tracing
        from common.lifeline import follow_parent
        from common.logs import configure_logging
        from common.web import serve
        from router.app import build_app
        from router.freed_memory import keep_freed_memory
        from router.garbage import make_no_whole_collections
        from router.settings import RouterSettings

    follow_parent()
    keep_freed_memory()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = RouterSettings.load().with_own(**given)
    configure_logging(level=settings.log_level, style=settings.log_format, process="router")
    tracing.start("router")
    new_key = asyncio.run(_prepare(settings))
    if new_key is not None:
        typer.echo(f"The first API key, shown this once: {new_key}")
    app, own = build_app(settings), settings.router
    make_no_whole_collections()
    serve(
        app,
        host=own.host,
        port=own.port,
        drain_s=own.drain_s,
        on_stop=lambda: app.state.services.retire(),
        on_interrupt=lambda: app.state.services.dispatcher.interrupt(),
    )


async def _prepare(settings: "RouterSettings") -> str | None:
    """The catalog's schema and the first key; the key's secret if it was made just now."""
    from common.catalog import Catalog, load_or_create_secret_key, migrate
    from common.first_key import make_first_key

    await migrate(settings.catalog_url)
    catalog = await Catalog.open(settings.catalog_url, secret_key=load_or_create_secret_key(settings.secret_key_path))
    try:
        return await make_first_key(catalog)
    finally:
        await catalog.close()
