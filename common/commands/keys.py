"""`aquatint keys`: who may call."""

from typing import Annotated

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show, when

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")


@app.command("create")
def create(
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="May also manage nodes and keys.")] = False,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never when absent.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a key and print it, this once."""
    from common.api_client import ApiClient

    scopes = ["user", "admin"] if admin else ["user"]
    made = ApiClient(url, key).call("POST", "/admin/keys", body={"name": name, "scopes": scopes, "expires_in_days": days})
    if as_json:
        show([made], {}, as_json=True, empty="")
    else:
        typer.echo(made["key"])


@app.command("list")
def list_keys(as_json: JsonOption = False, url: UrlOption = None, key: KeyOption = None) -> None:
    """Show all keys, without their secrets."""
    from common.api_client import ApiClient

    rows = ApiClient(url, key).call("GET", "/admin/keys")["data"]
    if not as_json:
        rows = [row | {k: when(row[k]) for k in ("created", "expires", "last_used", "revoked")} for row in rows]
    columns = {
        "name": "name",
        "key": "prefix",
        "scopes": "scopes",
        "created": "created",
        "expires": "expires",
        "last used": "last_used",
        "revoked": "revoked",
    }
    show(rows, columns, as_json=as_json, empty="There are no keys.")


@app.command("revoke")
def revoke(name: str, url: UrlOption = None, key: KeyOption = None) -> None:
    """Revoke a key by name or id."""
    from common.api_client import ApiClient

    ApiClient(url, key).call("DELETE", f"/admin/keys/{name}")
    typer.echo(f"{name} is revoked.")
