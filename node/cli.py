"""`aquatint node`: one device as a process."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.settings import NodeSettings


def node(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    name: Annotated[str | None, typer.Option(help="What routers and the catalog call this node.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Folder with checkpoints; may be given again.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token of routers and operators.")] = None,
    join: Annotated[str | None, typer.Option(help="Address of a router to tell of this node.")] = None,
    join_key: Annotated[str | None, typer.Option(help="A key with the scope join, for that.", show_default=False)] = None,
    preload: Annotated[list[str] | None, typer.Option(help="Model to load at the start and keep.")] = None,
) -> None:
    """Run a node: one device behind OpenAI's Images routes."""
    import asyncio

    from common.imports import uncollected

    with uncollected():
        from common import tracing
        from common.catalog import migrate
        from common.lifeline import follow_parent
        from common.logs import configure_logging
        from common.web import serve
        from node.app import build_app
        from node.settings import NodeSettings

    follow_parent()
    given = {
        "host": host,
        "port": port,
        "name": name,
        "models_dirs": models or None,
        "device": device,
        "token": token,
        "join_url": join,
        "join_key": join_key,
        "preload": preload or None,
    }
    settings = NodeSettings.load().with_own(**{key: value for key, value in given.items() if value is not None})
    configure_logging(level=settings.log_level, style=settings.log_format, process="node")
    tracing.start("node")
    asyncio.run(migrate(settings.catalog_url))
    _say_how_to_register(settings)
    app, own = build_app(settings), settings.node
    serve(app, host=own.host, port=own.port, drain_s=own.drain_s, on_stop=lambda: app.state.services.teller.leave())


def _say_how_to_register(settings: "NodeSettings") -> None:
    own = settings.node
    if own.join_url is not None:
        typer.echo(f"Node {own.name!r} starts on port {own.port} and tells the router at {own.join_url} of itself.")
        return
    where = "the one given" if own.token else f"in {settings.token_path}"
    token = "..." if own.token else f"$(cat {settings.token_path})"
    typer.echo(f"Node {own.name!r} starts on port {own.port}; its token is {where}. Register it with a router by")
    typer.echo(f"  aquatint nodes add {own.name} http://HOST:{own.port} --token {token}")
