"""`aquatint models`: what can be asked for."""

from importlib.metadata import entry_points
from typing import Annotated

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show

GROUP = "aquatint.models"
"""Entry points of subcommands that touch model files, which only a node knows."""

app = typer.Typer(no_args_is_help=True, help="Models: list them, give them other names, look after their files.")


@app.command("list")
def list_models(as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Show the models of nodes that are online, and their aliases."""
    from common.api_client import ApiClient

    rows = ApiClient(url, key).call("GET", "/v1/models")["data"]
    if not as_json:
        rows = [row | {"size": row["capabilities"].get("default_size")} for row in rows]
    columns = {
        "model": "id",
        "alias of": "alias_of",
        "profile": "profile",
        "tasks": "tasks",
        "size": "size",
        "loaded": "resident",
        "licence": "licence",
    }
    show(rows, columns, as_json=as_json, empty="No node offers a model.")


@app.command("alias")
def alias(
    name: str,
    model: Annotated[str | None, typer.Argument(help="The model it stands for; absent: remove the alias.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Let clients ask for MODEL under another NAME."""
    from common.api_client import ApiClient

    client = ApiClient(url, key)
    if model is None:
        client.call("DELETE", f"/admin/aliases/{name}")
        typer.echo(f"{name} is no alias any more.")
    else:
        client.call("PUT", f"/admin/aliases/{name}", body={"model": model})
        typer.echo(f"{name} now means {model}.")


for _entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
    app.command(_entry.name)(_entry.load())
