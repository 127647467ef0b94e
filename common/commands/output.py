"""Tables for people, JSON for scripts."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
UrlOption = Annotated[str | None, typer.Option("--url", help="Address of the router.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="API key.", show_default=False)]


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    """Print rows. columns: heading -> key."""
    if as_json:
        typer.echo(json.dumps(list(rows), ensure_ascii=False, indent=2))
        return
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(_text(row.get(key))) for key in columns.values()))
    Console().print(table)


def when(unix_s: int | None) -> str | None:
    """A moment as local date and time."""
    return None if unix_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
