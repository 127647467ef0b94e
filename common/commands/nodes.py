"""`aquatint nodes`: the fleet."""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show, when

app = typer.Typer(no_args_is_help=True, help="Nodes: add, approve, list, test, drain, resume, rotate, remove.")
COLUMNS = {
    "name": "name",
    "state": "state",
    "device": "device_name",
    "models": "model_names",
    "in flight": "in_flight",
    "url": "url",
    "last seen": "last_seen",
    "error": "error",
}


def _row(node: dict[str, Any]) -> dict[str, Any]:
    return node | {
        "state": node["state"] if node["approved"] else "waits for approval",
        "device_name": node["device"] and f"{node['device']['kind']} ({node['device']['name']})",
        "model_names": [model["id"] for model in node["models"]],
        "last_seen": when(node["last_seen"]),
    }


def _show(nodes: list[dict[str, Any]], as_json: bool) -> None:
    show(nodes if as_json else list(map(_row, nodes)), COLUMNS, as_json=as_json, empty="There are no nodes.")


@app.command("add")
def add(
    name: str,
    node_url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://gpu1:8001.")],
    token: Annotated[str | None, typer.Option(help="The node's token: `aquatint node` says where it lies.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The file that holds it.", exists=True, dir_okay=False)] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Give a node of this name the address and token, if it is known.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Register a node with the router."""
    from common.api_client import ApiClient

    told = {"url": node_url, "token": token_file.read_text().strip() if token_file else token}
    client = ApiClient(url, key)
    known = update and any(node["name"] == name for node in client.call("GET", "/admin/nodes")["data"])
    if known:
        node = client.call("PATCH", f"/admin/nodes/{name}", body=told)
    else:
        node = client.call("POST", "/admin/nodes", body={"name": name} | told)
    _show([node], as_json)


@app.command("approve")
def approve(name: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Let a node that joined by itself have runs."""
    from common.api_client import ApiClient

    _show([ApiClient(url, key).call("POST", f"/admin/nodes/{name}/approve")], as_json)


@app.command("rotate")
def rotate(name: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Give a node a new token, which nobody is shown. Runs go on meanwhile."""
    from common.api_client import ApiClient

    _show([ApiClient(url, key).call("POST", f"/admin/nodes/{name}/rotate")], as_json)


@app.command("list")
def list_nodes(as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Show all nodes."""
    from common.api_client import ApiClient

    _show(ApiClient(url, key).call("GET", "/admin/nodes")["data"], as_json)


@app.command("test")
def look(name: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Look at a node now; exit code 1 if it does not answer well."""
    from common.api_client import ApiClient

    node = ApiClient(url, key).call("POST", f"/admin/nodes/{name}/test")
    _show([node], as_json)
    if not node["reachable"]:
        raise typer.Exit(1)


@app.command("drain")
def drain(name: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Give a node no more runs; those it has end."""
    from common.api_client import ApiClient

    _show([ApiClient(url, key).call("POST", f"/admin/nodes/{name}/drain")], as_json)


@app.command("resume")
def resume(name: str, as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Take a drained node back."""
    from common.api_client import ApiClient

    _show([ApiClient(url, key).call("POST", f"/admin/nodes/{name}/resume")], as_json)


@app.command("remove")
def remove(name: str, url: UrlOption = None, key: KeyOption = None) -> None:
    """Forget a node."""
    from common.api_client import ApiClient

    ApiClient(url, key).call("DELETE", f"/admin/nodes/{name}")
    typer.echo(f"{name} is removed.")
