"""`aquatint backup`: copies of the catalog and its pictures, from which either kind of database is made again."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from common.backup import Manifest, Progress, Repository

app = typer.Typer(no_args_is_help=True, help="Backups of the catalog and its pictures: create, check, restore, prune.")

ToOption = Annotated[
    Path | None,
    typer.Option("--to", help="Folder of the backups; `backups` in the home folder when absent.", show_default=False),
]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", help="Folder of the backups; `backups` in the home folder when absent.", show_default=False),
]
NameArgument = Annotated[str | None, typer.Argument(help="Which one; the newest when absent.", show_default=False)]
KeepOption = Annotated[int | None, typer.Option("--keep", min=1, help="Remove all but so many of the newest ones.")]
DAY_S = 86_400.0


@app.command("create")
def create(
    folder: ToOption = None,
    keep: KeepOption = None,
    every_days: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Go on: one whenever the newest is so old. A failure is told, and tried again an hour later."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a backup while everything works on. Exit code 1 if pictures were missing, which are named; the rest is there."""
    repository = _repository(folder)
    if every_days is not None:
        _repeat(repository, every_days * DAY_S, keep, as_json=as_json)
    manifest = _create(repository, keep, as_json=as_json)
    if manifest.assets.missing:
        raise typer.Exit(1)


@app.command("list")
def list_backups(folder: FromOption = None, as_json: JsonOption = False) -> None:
    """Show the backups of a folder, the oldest first."""
    repository = _repository(folder)
    rows = [_row(repository.manifest(name)) for name in repository.names()]
    columns = {"backup": "name", "rows": "rows", "pictures": "assets", "bytes": "size_bytes", "missing": "missing"}
    show(rows, columns, as_json=as_json, empty=f"There are no backups in {repository.folder}.")


@app.command("verify")
def verify(name: NameArgument = None, folder: FromOption = None, as_json: JsonOption = False) -> None:
    """Read every byte of a backup. Exit code 1 if something is missing or is not what was written."""
    from common.backup import verify as look

    repository = _repository(folder)
    name = name or repository.newest()
    with _bar("Reading pictures", quiet=as_json) as progress:
        faults = asyncio.run(look(repository, name, progress))
    rows = [{"backup": name, "fault": fault} for fault in faults]
    show(rows, {"backup": "backup", "fault": "fault"}, as_json=as_json, empty=f"Backup {name} is whole.")
    if faults:
        raise typer.Exit(1)


@app.command("restore")
def restore(
    name: NameArgument = None,
    folder: FromOption = None,
    despite_damage: Annotated[
        bool, typer.Option("--despite-damage", help="Leave out pictures that are damaged in the backup, instead of stopping.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill the catalog and the store that the settings name. The database, of either kind, must not have rows yet."""
    from common.backup import restore as bring_back
    from common.settings import CommonSettings

    settings, repository = CommonSettings.load(), _repository(folder)
    name = name or repository.newest()
    with _bar("Restoring pictures", quiet=as_json) as progress:
        done = asyncio.run(
            bring_back(
                repository,
                name,
                settings.catalog_url,
                settings.asset_store_url,
                progress,
                despite_damage=despite_damage,
            )
        )
    if as_json:
        row = {"backup": name, "rows": done.rows, "assets": done.assets, "missing": done.missing}
        show([row], {}, as_json=True, empty="")
        return
    typer.echo(f"Restored backup {name}: {done.rows:,} rows, {done.assets:,} pictures.")
    if done.missing:
        typer.secho(f"{len(done.missing)} pictures are not in it, such as {done.missing[0]}.", err=True, fg="yellow")


@app.command("prune")
def prune(keep: Annotated[int, typer.Option(min=1, help="How many of the newest stay.")], folder: FromOption = None) -> None:
    """Remove older backups, and the pictures that only they know."""
    _prune(_repository(folder), keep)


def _create(repository: "Repository", keep: int | None, *, as_json: bool) -> "Manifest":
    from common.backup import create as make
    from common.settings import CommonSettings

    settings = CommonSettings.load()
    with _bar("Copying pictures", quiet=as_json) as progress:
        manifest = asyncio.run(make(settings.catalog_url, settings.asset_store_url, repository, progress))
    if as_json:
        show([_row(manifest)], {}, as_json=True, empty="")
    else:
        typer.echo(
            f"Backup {manifest.name} in {repository.folder}: {manifest.rows:,} rows, {manifest.assets.count:,} pictures."
        )
    for sha256 in manifest.assets.missing:
        typer.secho(f"Picture {sha256} is missing in the store, or damaged.", err=True, fg="yellow")
    if keep is not None:
        _prune(repository, keep)
    return manifest


def _repeat(repository: "Repository", every_s: float, keep: int | None, *, as_json: bool) -> None:
    """Never returns. What was made before the start counts: a restart makes none too many."""
    import time
    from datetime import UTC, datetime

    from common.errors import AquatintError

    while True:
        names = repository.names()
        age_s = (datetime.now(UTC) - repository.manifest(names[-1]).made_at).total_seconds() if names else every_s
        if age_s < every_s:
            time.sleep(every_s - age_s)
            continue
        try:
            _create(repository, keep, as_json=as_json)
        except AquatintError as error:
            typer.secho(f"No backup was made: {error}", err=True, fg="red")
            time.sleep(min(every_s, 3600))


def _prune(repository: "Repository", keep: int) -> None:
    from common.backup import prune as remove

    old, assets = asyncio.run(remove(repository, keep=keep))
    if old:
        typer.echo(f"Removed {len(old)} older backups and {assets:,} pictures that only they had.", err=True)


def _repository(folder: Path | None) -> "Repository":
    from common.backup import Repository
    from common.settings import CommonSettings

    return Repository(folder or CommonSettings.load().home / "backups")


def _row(manifest: "Manifest") -> dict[str, Any]:
    return {
        "name": manifest.name,
        "rows": manifest.rows,
        "assets": manifest.assets.count,
        "size_bytes": manifest.assets.size_bytes,
        "missing": len(manifest.assets.missing),
    }


@contextmanager
def _bar(title: str, *, quiet: bool) -> Iterator["Progress"]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    with Bar(TextColumn(title), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
