"""`aquatint keys`: who may call."""

from typing import Annotated

import typer

from common.commands.output import JsonOption, KeyOption, UrlOption, show, when

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, limit, revoke; what they use.")

RpmOption = Annotated[int | None, typer.Option(help="Requests per minute; no limit when absent.")]
ImagesOption = Annotated[int | None, typer.Option(help="Pictures per day (UTC); no limit when absent.")]
GpuSecondsOption = Annotated[float | None, typer.Option(help="GPU-seconds per day (UTC); no limit when absent.")]
InFlightOption = Annotated[int | None, typer.Option(help="Requests in flight at once; no limit when absent.")]
PriorityOption = Annotated[str | None, typer.Option(help="Highest priority: high, normal, low; normal when absent.")]
DeadlineOption = Annotated[float | None, typer.Option(help="Deadline in seconds of requests that name none.")]


@app.command("create")
def create(
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="May also manage nodes and keys.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Opens nothing but a node's way into the fleet, once approved.")] = False,
    approved: Annotated[bool, typer.Option("--approved", help="With --join: its nodes need no approval.")] = False,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never when absent.")] = None,
    rpm: RpmOption = None,
    images: ImagesOption = None,
    gpu_seconds: GpuSecondsOption = None,
    in_flight: InFlightOption = None,
    priority: PriorityOption = None,
    deadline_s: DeadlineOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a key and print it, this once."""
    from common.api_client import ApiClient

    if (admin and join) or (approved and not join):
        raise typer.BadParameter("--approved goes with --join, and --join not with --admin.")
    scopes = ["user", "admin"] if admin else ["user"]
    if join:
        scopes = ["join-approved" if approved else "join"]
    limits = _limits(rpm, images, gpu_seconds, in_flight, priority, deadline_s)
    wanted = {"name": name, "scopes": scopes, "expires_in_days": days, "limits": limits}
    made = ApiClient(url, key).call("POST", "/admin/keys", body=wanted)
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


@app.command("limit")
def limit(
    name: str,
    rpm: RpmOption = None,
    images: ImagesOption = None,
    gpu_seconds: GpuSecondsOption = None,
    in_flight: InFlightOption = None,
    priority: PriorityOption = None,
    deadline_s: DeadlineOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Replace the limits of a key, by name or id; without options it has none."""
    from common.api_client import ApiClient

    ApiClient(url, key).call(
        "PUT", f"/admin/keys/{name}/limits", body=_limits(rpm, images, gpu_seconds, in_flight, priority, deadline_s)
    )
    typer.echo(f"The limits of {name} are set.")


def _limits(
    rpm: int | None,
    images: int | None,
    gpu_seconds: float | None,
    in_flight: int | None,
    priority: str | None,
    deadline_s: float | None,
) -> dict[str, float | str | None]:
    return {
        "requests_per_minute": rpm,
        "images_per_day": images,
        "gpu_seconds_per_day": gpu_seconds,
        "max_in_flight": in_flight,
        "priority": priority,
        "deadline_s": deadline_s,
    }


@app.command("usage")
def usage(
    days: Annotated[int, typer.Option(help="How many days back, today included.")] = 30,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what each key used on each day (UTC): runs that succeeded, pictures, GPU-seconds."""
    from common.api_client import ApiClient

    rows = ApiClient(url, key).call("GET", f"/admin/usage?days={days}")["data"]
    columns = {"day": "day", "key": "key", "runs": "runs", "images": "images", "GPU-seconds": "gpu_seconds"}
    show(rows, columns, as_json=as_json, empty="Nothing was used.")


@app.command("revoke")
def revoke(name: str, url: UrlOption = None, key: KeyOption = None) -> None:
    """Revoke a key by name or id."""
    from common.api_client import ApiClient

    ApiClient(url, key).call("DELETE", f"/admin/keys/{name}")
    typer.echo(f"{name} is revoked.")
