"""Subcommands of `aquatint models` that touch the files of this machine: scan, verify, add, pull, rm."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from node.hashes import Hashes, OnBytes

Folders = Annotated[list[Path] | None, typer.Argument(help="Models folders; those of the settings when absent.")]
Into = Annotated[Path | None, typer.Option("--into", help="Models folder; the first of the settings when absent.")]
RESTART = "A node that is running finds it at its next start."


def scan(
    folders: Folders = None,
    with_hash: Annotated[bool, typer.Option("--hash", help="Read every file's sha256.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a node would serve from this machine's folders, and why it refuses the rest."""
    from node.checkpoints import scan as look
    from node.checkpoints import weight_files
    from node.hashes import autov2

    found, hashes = look(_roots(folders)), _hashes()
    rows: list[dict[str, Any]] = []
    for checkpoint in found.checkpoints:
        files = weight_files(checkpoint)
        if with_hash:
            _read_all(hashes, files)
        known = [hashes.known(file) for file in files]
        rows.append(
            {
                "name": checkpoint.name,
                "family": checkpoint.family.value,
                "layout": checkpoint.layout.value,
                "engine": checkpoint.engine.value,
                "stored_bytes": checkpoint.stored_bytes,
                "gigabytes": f"{checkpoint.stored_bytes / 1e9:.2f}",
                "autov2": [autov2(each) for each in known if each],
                "sha256": {str(file): each for file, each in zip(files, known, strict=True)},
                "path": str(checkpoint.path),
                "refused": None,
            }
        )
    rows += [{"name": None, "path": str(refusal.path), "refused": refusal.reason} for refusal in found.refused]
    columns = {
        "name": "name",
        "family": "family",
        "layout": "layout",
        "engine": "engine",
        "GB": "gigabytes",
        "AutoV2": "autov2",
        "path": "path",
    }
    show(rows, columns | {"refused": "refused"}, as_json=as_json, empty="No checkpoint was found.")


def verify(folders: Folders = None, as_json: JsonOption = False) -> None:
    """Read every weight file again and hold it against the sha256 it had before. Exit code 1 when one has changed."""
    from node.checkpoints import scan as look
    from node.checkpoints import weight_files

    hashes, rows, done = _hashes(), [], set[Path]()
    for checkpoint in look(_roots(folders)).checkpoints:
        for file in weight_files(checkpoint):
            if file in done:
                continue
            done.add(file)
            before = hashes.known(file)
            with _bar(file.name, file.stat().st_size) as on_bytes:
                now = hashes.renew(file, on_bytes)
            verdict = "first read" if before is None else "as before" if before == now else "CHANGED"
            rows.append({"name": checkpoint.name, "file": str(file), "verdict": verdict, "sha256": now})
    show(
        rows,
        {"name": "name", "file": "file", "verdict": "verdict", "sha256": "sha256"},
        as_json=as_json,
        empty="No checkpoint.",
    )
    if any(row["verdict"] == "CHANGED" for row in rows):
        raise typer.Exit(1)


def add(
    path: Annotated[Path, typer.Argument(help="A diffusers folder, or a model file with its sidecar beside it.")],
    move: Annotated[bool, typer.Option("--move", help="Move it instead of copying.")] = False,
    into: Into = None,
) -> None:
    """Check a checkpoint and put it where the node finds it."""
    from node.checkpoints import ways_to_run
    from node.pulling import INCOMING

    path = path.resolve()
    with _told():
        ways_to_run(path, root=path if path.is_dir() else path.parent)
    folder = into or _first_root()
    place, incoming = folder / path.name, folder / INCOMING / path.name
    if place.exists():
        raise typer.BadParameter(f"{place} is already there", param_hint="PATH")
    incoming.parent.mkdir(parents=True, exist_ok=True)
    sidecar = path.with_suffix(".toml") if path.is_file() else None
    if sidecar is not None and sidecar.is_file():
        shutil.copy2(sidecar, place.with_suffix(".toml"))
    if move:
        shutil.move(path, incoming)
    elif path.is_dir():
        shutil.copytree(path, incoming)
    else:
        shutil.copy2(path, incoming)
    incoming.rename(place)
    typer.echo(f"{place}\n{RESTART}")


def pull(
    source: Annotated[str, typer.Argument(help="ORGANISATION/NAME[@REVISION], civitai:VERSION, or an AIR.")],
    into: Into = None,
    token: Annotated[str | None, typer.Option(envvar=["HF_TOKEN", "CIVITAI_TOKEN"], help="Of an account there.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Another address that speaks the same API.")] = None,
) -> None:
    """Download a checkpoint from Hugging Face or CivitAI, check it, and put it where the node finds it."""
    from node import pulling

    try:
        wanted = pulling.parse_source(source)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="SOURCE") from None
    folder = into or _first_root()
    with _told():
        if isinstance(wanted, pulling.HubSource):
            pulled = pulling.pull_hub(wanted, folder, endpoint=endpoint, token=token)
        else:
            url = endpoint or pulling.CIVITAI_URL
            with _bar(source, None) as on_bytes:
                pulled = pulling.pull_civitai(wanted, folder, url=url, token=token, on_bytes=on_bytes)
    typer.echo(f"{pulled.path}  {pulled.stored_bytes / 1e9:.2f} GB\n{RESTART}")


def rm(
    name: Annotated[str, typer.Argument(help="Name as `aquatint models scan` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a checkpoint's files from this machine."""
    from node.checkpoints import scan as look
    from node.model_folders import is_cached

    chosen = next((each for each in look(_roots(None)).checkpoints if each.name == name), None)
    if chosen is None:
        raise typer.BadParameter(f"there is no checkpoint {name!r} in the models folders", param_hint="NAME")
    if is_cached(chosen.path):
        raise typer.BadParameter(f"{name!r} lies in Hugging Face's cache: `hf cache` removes it there", param_hint="NAME")
    if not yes:
        typer.confirm(f"Delete {chosen.path} ({chosen.stored_bytes / 1e9:.2f} GB)?", abort=True)
    if chosen.path.is_dir() and not chosen.path.is_symlink():
        shutil.rmtree(chosen.path)
    else:
        chosen.path.unlink()
        chosen.path.with_suffix(".toml").unlink(missing_ok=True)
    typer.echo(f"{chosen.path} is gone.")


@contextmanager
def _told() -> Iterator[None]:
    """What speaks against a checkpoint, for the person at the terminal."""
    from node.pulling import PullFailed
    from node.safetensors_header import CheckpointRefused

    try:
        yield
    except (CheckpointRefused, PullFailed) as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(1) from None


def _roots(folders: list[Path] | None) -> list[Path]:
    from node.settings import NodeSettings

    return [folder.resolve() for folder in folders] if folders else NodeSettings.load().models_dirs


def _first_root() -> Path:
    from node.settings import NodeSettings

    return NodeSettings.load().pull_dir


def _hashes() -> "Hashes":
    from node.hashes import Hashes
    from node.settings import NodeSettings

    return Hashes(NodeSettings.load().hashes_path)


def _read_all(hashes: "Hashes", files: list[Path]) -> None:
    for file in files:
        if hashes.known(file) is None:
            with _bar(file.name, file.stat().st_size) as on_bytes:
                hashes.of(file, on_bytes)


@contextmanager
def _bar(name: str, total_bytes: int | None) -> "Iterator[OnBytes]":
    """A progress bar on stderr; the function to tell of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(name, total=total_bytes)
        yield lambda count: progress.update(bar, advance=count)
