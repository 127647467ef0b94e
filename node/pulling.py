"""Brings checkpoints from Hugging Face and CivitAI into a models folder.

What arrives lies in `.incoming` until it is whole, its sha256 is the one the source states, and it passes the same
checks as every checkpoint; only then it gets its place, in one rename. An interrupted pull goes on where it stopped.
Formats that can hold code are never asked for.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from node.checkpoints import inspect
from node.diffusers_folder import INDEX
from node.hashes import OnBytes, digest
from node.safetensors_header import CheckpointRefused
from node.sdcpp_files import read_tensors

INCOMING = ".incoming"
"""Folders that begin with a dot are not scanned."""
HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.gguf", "*.jinja")
CIVITAI_URL = "https://civitai.com"
CIVITAI_FOLDERS = {"Checkpoint": "checkpoints", "LORA": "loras", "LoCon": "loras", "DoRA": "loras"}
"""Where ComfyUI and A1111 users keep each type. Other types are nothing this node serves."""

_AIR = re.compile(r"urn:air:[a-z0-9]+:[a-z]+:civitai:[0-9]+@([0-9]+)", re.ASCII)
_HUB = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


class PullFailed(Exception):
    """The source refused, sent something else than it stated, or what it sent is not served here."""


class AlreadyThere(PullFailed):
    """Where it would go there is something."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is already there. Remove it first, or serve it.")
        self.path = path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of Hugging Face, at a branch, tag or commit."""

    repo: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class CivitaiSource:
    """One version of a model on CivitAI."""

    version: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """What arrived, and where it lies."""

    path: Path
    stored_bytes: int


def parse_source(text: str) -> HubSource | CivitaiSource:
    """Read `organisation/name[@revision]`, `civitai:VERSION` or an AIR (`urn:air:sdxl:checkpoint:civitai:MODEL@VERSION`).

    Raises: ValueError: anything else.
    """
    if found := _AIR.fullmatch(text):
        return CivitaiSource(int(found[1]))
    if text.startswith("civitai:") and text.removeprefix("civitai:").isdecimal():
        return CivitaiSource(int(text.removeprefix("civitai:")))
    if (found := _HUB.fullmatch(text)) and ".." not in text:
        return HubSource(found[1], found[2])
    raise ValueError(f"{text!r} is neither ORGANISATION/NAME[@REVISION] of Hugging Face, civitai:VERSION, nor an AIR")


def pull_hub(source: HubSource, folder: Path, *, endpoint: str | None = None, token: str | None = None) -> Pulled:
    """A repository as `folder`/organisation/name. huggingface_hub shows its own progress and resumes.

    Raises: PullFailed: not there, no access, or a file whose sha256 is not the one stated.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    incoming = folder / INCOMING / source.repo
    _require_free(folder / source.repo)
    try:
        stated = HfApi(endpoint=endpoint).model_info(source.repo, revision=source.revision, files_metadata=True, token=token)
        snapshot_download(
            source.repo,
            revision=stated.sha,
            local_dir=incoming,
            allow_patterns=list(HUB_PATTERNS),
            endpoint=endpoint,
            token=token,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise PullFailed(f"{source.repo}: {str(error).strip().splitlines()[0]}") from None
    for sibling in stated.siblings or ():
        path = incoming / sibling.rfilename
        if sibling.lfs is not None and path.exists() and digest(path) != sibling.lfs.sha256:
            path.unlink()
            raise PullFailed(f"{source.repo}: {sibling.rfilename} has not the sha256 that its source states. Pull it again.")
    _check(incoming)
    shutil.rmtree(incoming / ".cache", ignore_errors=True)
    placed = _settled(incoming, folder / source.repo)
    return Pulled(placed, sum(file.stat().st_size for file in placed.rglob("*") if file.is_file()))


def pull_civitai(
    source: CivitaiSource,
    folder: Path,
    *,
    url: str = CIVITAI_URL,
    token: str | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> Pulled:
    """The main file of a version, under the folder of its type, with a sidecar of what is known of it.

    Raises: PullFailed.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=60, follow_redirects=True) as client:
        version = _civitai_version(client, source)
        file = _main_file(version, source)
        kind = CIVITAI_FOLDERS[version["model"]["type"]]
        name = _safe_name(file["name"])
        incoming = folder / INCOMING / f"civitai-{source.version}" / name
        _require_free(folder / kind / name)
        incoming.parent.mkdir(parents=True, exist_ok=True)
        sha256 = str(file["hashes"]["SHA256"]).lower()
        _download(client, str(file["downloadUrl"]), incoming, on_bytes)
    if digest(incoming) != sha256:
        incoming.unlink()
        raise PullFailed(f"civitai:{source.version}: {name} has not the sha256 that its source states. Pull it again.")
    _check(incoming)
    placed = _settled(incoming, folder / kind / name)
    if kind == "loras":
        placed.with_suffix(".toml").write_text(_lora_sidecar(version, source))
    return Pulled(placed, placed.stat().st_size)


def _civitai_version(client: httpx.Client, source: CivitaiSource) -> dict[str, Any]:
    try:
        answer = client.get(f"/api/v1/model-versions/{source.version}")
        answer.raise_for_status()
        version: dict[str, Any] = answer.json()
        kind = version["model"]["type"]
    except httpx.HTTPStatusError as error:
        raise PullFailed(f"civitai:{source.version}: answered {error.response.status_code}.") from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise PullFailed(f"civitai:{source.version}: cannot be read ({type(error).__name__}).") from None
    if kind not in CIVITAI_FOLDERS:
        raise PullFailed(f"civitai:{source.version}: it is of type {kind!r}; pulled are {', '.join(CIVITAI_FOLDERS)}.")
    return version


def _main_file(version: dict[str, Any], source: CivitaiSource) -> dict[str, Any]:
    """The primary safetensors file, else the first."""
    files = [file for file in version.get("files") or [] if str(file.get("name", "")).endswith(".safetensors")]
    files = [file for file in files if (file.get("hashes") or {}).get("SHA256") and file.get("downloadUrl")]
    if not files:
        raise PullFailed(f"civitai:{source.version}: it has no safetensors file with a stated sha256.")
    return next((file for file in files if file.get("primary")), files[0])


def _safe_name(name: str) -> str:
    """A file name of ours from one of theirs: it becomes a path here."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".")[-150:]


def _download(client: httpx.Client, url: str, path: Path, on_bytes: OnBytes) -> None:
    """GET into a file, going on after what is already there."""
    have = path.stat().st_size if path.exists() else 0
    try:
        with client.stream("GET", url, headers={"range": f"bytes={have}-"} if have else {}) as answer:
            if answer.status_code == 416:  # All of it is there.
                return
            answer.raise_for_status()
            resumed = answer.status_code == 206
            on_bytes(have if resumed else 0)
            with path.open("ab" if resumed else "wb") as out:
                # As they arrive: gathered into larger ones, the last before a break would be lost.
                for chunk in answer.iter_raw():
                    out.write(chunk)
                    on_bytes(len(chunk))
    except httpx.HTTPStatusError as error:
        raise PullFailed(f"The download was answered {error.response.status_code}.") from None
    except httpx.HTTPError as error:
        raise PullFailed(f"The download broke off ({type(error).__name__}); pull again to go on.") from None


def _check(arrived: Path) -> None:
    """The checks of every checkpoint; of single files, whose configs the operator has yet to name, those of the header.

    Raises: PullFailed: refused; what arrived stays where it is, for a look.
    """
    try:
        if (arrived / INDEX).exists():
            inspect(arrived, root=arrived)
        for file in [arrived] if arrived.is_file() else sorted([*arrived.rglob("*.safetensors"), *arrived.rglob("*.gguf")]):
            read_tensors(file)
    except CheckpointRefused as refusal:
        raise PullFailed(f"It arrived, and is not served here: {refusal}") from None


def _settled(incoming: Path, place: Path) -> Path:
    """Give what arrived its place. Raises: AlreadyThere."""
    _require_free(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    incoming.rename(place)
    return place


def _require_free(place: Path) -> None:
    """Raises: AlreadyThere."""
    if place.exists():
        raise AlreadyThere(place)


def _lora_sidecar(version: dict[str, Any], source: CivitaiSource) -> str:
    """What requests may call it by, and its trigger words, as TOML."""
    words = [str(word) for word in version.get("trainedWords") or []]
    air = version.get("air")
    lines = [f"trigger_words = {_toml(words)}"]
    if isinstance(air, str) and _AIR.fullmatch(air):
        lines.append(f"air = {_toml(air)}")
    return f"# From CivitAI, version {source.version}.\n" + "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Strings and lists of them are written alike in JSON and in TOML, DEL aside."""
    return json.dumps(value).replace("\x7f", "\\u007f")
