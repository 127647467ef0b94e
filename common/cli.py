"""The command `aquatint`. Its subcommands are found through entry points, so this package imports none above it."""

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

GROUP = "aquatint.commands"
ORDER = (
    "up",
    "generate",
    "router",
    "node",
    "nodes",
    "keys",
    "models",
    "db",
    "backup",
    "jobs",
    "config",
    "top",
    "explain",
    "doctor",
    "bench",
    "train",
)


def build_cli() -> typer.Typer:
    """Every installed subcommand, as one application."""
    from common.version import VERSION

    cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Image generation on your own GPUs.")

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(VERSION)
            raise typer.Exit

    @cli.callback()
    def root(version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True)] = False) -> None:
        """Aquatint: an OpenAI-compatible image-generation server for people who own the GPUs."""

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        command = found[name].load()
        if isinstance(command, typer.Typer):
            cli.add_typer(command, name=name)
        else:
            cli.command(name)(command)
    return cli


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 it failed, 2 it was asked wrongly (arguments, settings)."""
    from common.api_client import ApiError
    from common.errors import AquatintError
    from common.settings import SettingsError

    try:
        build_cli()()
    except SettingsError as error:
        typer.secho(f"The settings are not valid:\n{error}", err=True, fg="red")
        sys.exit(2)
    except (ApiError, AquatintError) as error:
        typer.secho(str(error), err=True, fg="red")
        sys.exit(1)
