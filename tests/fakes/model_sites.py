"""Hugging Face and CivitAI as far as pulling goes, over HTTP as they speak it: listings, redirects to storage, ranges.

Wire of the hub: `GET /api/models/REPO/revision/REV?blobs=true`, `GET /api/models/REPO/tree/...`, `HEAD|GET
/REPO/resolve/COMMIT/FILE` with `X-Repo-Commit`, `ETag` (git's sha1 for small files, sha256 for large ones, then also
`X-Linked-Etag` and `X-Linked-Size`). Wire of CivitAI: `GET /api/v1/model-versions/ID`, `GET /api/download/models/ID`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse, RedirectResponse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Sites:
    """What is stored, what was asked, and what goes wrong."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    token: str | None = None
    """Asked for where it is set."""
    breaks_after_bytes: int | None = None
    """The next download ends here, once."""
    lies: bool = False
    """States another sha256 than what is sent has."""
    asked: list[str] = field(default_factory=list)
    """`METHOD path` of every request, and its range where there is one."""

    def sha256(self, content: bytes) -> str:
        """As it is stated."""
        return hashlib.sha256(content + (b"!" if self.lies else b"")).hexdigest()

    def put_version(self, number: int, name: str, content: bytes, kind: str = "Checkpoint", **more: Any) -> None:
        """A version of a model on CivitAI with one file."""
        self.files[number] = content
        self.versions[number] = {
            "id": number,
            "name": "v1",
            "model": {"name": "m", "type": kind},
            "trainedWords": [],
            "files": [
                {"name": name, "type": "Model", "sizeKB": len(content) / 1024, "primary": True, "hashes": {}, "downloadUrl": ""}
            ],
        } | more


def build_sites(sites: Sites) -> FastAPI:
    """Both as one ASGI app."""
    app = FastAPI()

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        ranged = request.headers.get("range")
        sites.asked.append(f"{request.method} {request.url.path}" + (f" {ranged}" if ranged else ""))
        if sites.token is not None and request.headers.get("authorization") != f"Bearer {sites.token}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        answer: Response = await call_next(request)
        return answer

    @app.get("/api/models/{repo:path}/revision/{revision}")
    async def info_at(repo: str, revision: str) -> Response:
        return await info(repo)

    @app.get("/api/models/{organisation}/{name}")
    async def info_of(organisation: str, name: str) -> Response:
        return await info(f"{organisation}/{name}")

    async def info(repo: str) -> Response:
        files = sites.repos.get(repo)
        if files is None:
            return JSONResponse({"error": "Repository not found"}, status_code=404, headers={"x-error-code": "RepoNotFound"})
        siblings = [_sibling(sites, name, content) for name, content in files.items()]
        return JSONResponse({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    @app.get("/api/models/{repo:path}/tree/{revision}")
    async def tree(repo: str, revision: str) -> Response:
        rows = []
        for name, content in sites.repos[repo].items():
            row: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if name.endswith(".safetensors"):
                row["lfs"] = {"oid": sites.sha256(content), "size": len(content), "pointerSize": 100}
            rows.append(row)
        return JSONResponse(rows)

    @app.api_route("/{organisation}/{name}/resolve/{commit}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(organisation: str, name: str, commit: str, path: str, request: Request) -> Response:
        content = sites.repos[f"{organisation}/{name}"][path]
        headers = {"x-repo-commit": COMMIT, "etag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if path.endswith(".safetensors"):
            headers |= {"x-linked-etag": f'"{sites.sha256(content)}"', "x-linked-size": str(len(content))}
            # Large files lie with another host, as on the real hub: this machine under its other name.
            elsewhere = str(request.base_url).replace("127.0.0.1", "localhost")
            return Response(status_code=302, headers=headers | {"location": f"{elsewhere}large/{organisation}/{name}/{path}"})
        return _ranged(sites, content, request, headers)

    @app.get("/large/{organisation}/{name}/{path:path}")
    async def large(organisation: str, name: str, path: str, request: Request) -> Response:
        return _ranged(sites, sites.repos[f"{organisation}/{name}"][path], request, {})

    @app.get("/api/v1/model-versions/{number}")
    async def version(number: int, request: Request) -> Response:
        if number not in sites.versions:
            return JSONResponse({"error": f"No model with id {number}"}, status_code=404)
        told = sites.versions[number]
        for file in told["files"]:
            file["downloadUrl"] = f"{request.base_url}api/download/models/{number}"
            file["hashes"] = {"AutoV2": "0" * 10, "SHA256": sites.sha256(sites.files[number]).upper()}
        return JSONResponse(told)

    @app.get("/api/download/models/{number}")
    async def download(number: int) -> Response:
        return RedirectResponse(f"/storage/{number}", status_code=307)

    @app.get("/storage/{number}")
    async def storage(number: int, request: Request) -> Response:
        return _ranged(sites, sites.files[number], request, {})

    return app


def _sibling(sites: Sites, name: str, content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if name.endswith(".safetensors"):
        told["lfs"] = {"sha256": sites.sha256(content), "size": len(content), "pointerSize": 100}
    return told


def _ranged(sites: Sites, content: bytes, request: Request, headers: dict[str, str]) -> Response:
    start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    if start and start >= len(content):
        return Response(status_code=416)
    body = content[start:]
    headers = headers | {"content-length": str(len(body)), "accept-ranges": "bytes"}
    if start:
        headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    if request.method == "HEAD":
        return Response(status_code=200, headers=headers)
    if sites.breaks_after_bytes is not None:
        # The declared length stays: the client sees a body that ends too soon.
        body, sites.breaks_after_bytes = body[: sites.breaks_after_bytes], None
    return _Short(body, status_code=206 if start else 200, headers=headers)


class _Short(Response):
    """Sends its body whatever length its headers declare, then the connection ends."""

    def init_headers(self, headers: Any = None) -> None:
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]


@asynccontextmanager
async def silent_site() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A site that takes requests and never answers, until its clients have left: its address; set when the first has come."""
    came, waiting = asyncio.Event(), set[asyncio.Task[None]]()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        waiting.add(task)
        came.set()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", came
        await asyncio.gather(*waiting)
