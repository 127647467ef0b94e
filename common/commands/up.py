"""`aquatint up`: one router, one node, one command."""

import asyncio
import base64
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.ports import hold_port

if TYPE_CHECKING:
    import httpx

    from common.processes import Child
    from common.settings import CommonSettings

NODE_NAME = "local"
FIRST_PROMPT = "a large yellow star in the centre, on a purple background"
READY_WITHIN_S = 600.0
STOP_GRACE_S = 35.0
POLL_S = 0.2


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    home: Annotated[Path | None, typer.Option(help="Folder of catalog, assets and keys (AQUATINT_HOME).")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Folder with checkpoints; may be given more than once.")] = None,
) -> None:
    """Run a router and a node on this machine, and make a first picture."""
    if home is not None:
        os.environ["AQUATINT_HOME"] = str(home.absolute())
    from common.settings import CommonSettings

    raise typer.Exit(asyncio.run(_Up(CommonSettings.load(), host, port, models or []).run()))


class _Up:
    """One invocation, from the first check to the last child's end."""

    def __init__(self, settings: "CommonSettings", host: str, port: int, models: list[Path]) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._models = models
        # An address that accepts connections from everywhere is no address to call.
        called = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        self._url = f"http://{called}:{port}"
        self._children: list[Child] = []
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """The exit code."""
        from common.processes import ChildFailed, HomeInUse, only_one

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        self._settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            hold_port(self._port, self._host)
        except OSError:
            typer.secho(f"Port {self._port} is in use. Choose another with --port.", err=True, fg="red")
            return 1
        try:
            with only_one(self._settings.home):
                try:
                    return await self._run()
                finally:
                    await self._stop_children()
        except (ChildFailed, HomeInUse) as error:
            typer.secho(str(error), err=True, fg="red")
            return 1

    async def _stop_children(self) -> None:
        if self._children:
            typer.echo("\nStopping ...")
        # The router first: it stops taking requests and waits for those at the node.
        for child in self._children:
            await child.stop(grace_s=STOP_GRACE_S)

    async def _run(self) -> int:
        new_key, first_time = await self._prepare()
        if not await self._wait_until_ready():
            return 0
        for child in self._children:
            child.on_restart = _say_restarted
            child.keep_alive()
        from common.api_client import remember

        noted = remember(self._settings.home, self._url, new_key)
        key = new_key or ""
        if first_time and new_key:
            await self._first_picture(new_key)
        self._welcome(key, noted)
        await self._stop.wait()
        return 0

    async def _prepare(self) -> tuple[str | None, bool]:
        """Catalog, key and children. Returns a key if one was made just now, and whether anything was ever made here."""
        from common.catalog import Catalog, load_or_create_secret_key, migrate
        from common.first_key import make_first_key

        settings = self._settings
        await migrate(settings.catalog_url)
        catalog = await Catalog.open(settings.catalog_url, secret_key=load_or_create_secret_key(settings.secret_key_path))
        try:
            new_key = await make_first_key(catalog)
            node_port, token = hold_port(), secrets.token_urlsafe(32)
            await _register(catalog, f"http://127.0.0.1:{node_port}", token)
            first_time = not await catalog.runs.list(limit=1)
        finally:
            await catalog.close()
        await self._start_children(node_port, token)
        return new_key, first_time

    async def _start_children(self, node_port: int, token: str) -> None:
        from common.processes import Child

        logs = self._settings.home / "logs"
        environment = {"AQUATINT_HOME": str(self._settings.home)}
        router = Child(
            "router",
            ["-m", "router", "--host", self._host, "--port", str(self._port)],
            environment=environment,
            log=logs / "router.log",
        )
        arguments = ["-m", "node", "--host", "127.0.0.1", "--port", str(node_port), "--name", NODE_NAME]
        for folder in self._models:
            arguments += ["--models", str(folder.absolute())]
        node = Child("node", arguments, environment={**environment, "AQUATINT__NODE__TOKEN": token}, log=logs / "node.log")
        for child in (router, node):
            await child.start()
            self._children.append(child)

    async def _wait_until_ready(self) -> bool:
        """True once a node is online and has a model; False when asked to stop before."""
        import httpx
        from rich.console import Console

        began_s = time.monotonic()
        with Console(stderr=True).status("starting the router and the node ...") as shown:
            async with httpx.AsyncClient(base_url=self._url, timeout=5, trust_env=False) as client:
                while not self._stop.is_set():
                    for child in self._children:
                        child.check()
                    if await _ready(client):
                        return True
                    waited_s = time.monotonic() - began_s
                    if waited_s > READY_WITHIN_S:
                        raise _not_ready(self._children)
                    shown.update(f"starting the node and looking at its checkpoints ... {waited_s:.0f} s")
                    await _stopped_within(self._stop, POLL_S)
        return False

    async def _first_picture(self, key: str) -> None:
        """Ask our own public API for a picture, as any client would."""
        import httpx
        from rich.console import Console

        path = self._settings.home / "first-picture.png"
        began_s = time.monotonic()
        headers = {"authorization": f"Bearer {key}"}
        with Console(stderr=True).status("loading the model and making a first picture ...") as shown:
            async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=600, trust_env=False) as client:
                asked = asyncio.create_task(
                    client.post(
                        "/v1/images/generations", json={"prompt": FIRST_PROMPT, "seed": 2, "response_format": "b64_json"}
                    )
                )
                while not asked.done() and not self._stop.is_set():
                    shown.update(await _progress(client))
                    await asyncio.wait({asked}, timeout=POLL_S)
                if not asked.done():
                    asked.cancel()
                    await asyncio.gather(asked, return_exceptions=True)
                    return
                answer = asked.result()
        if answer.is_error:
            typer.secho(f"The first picture failed: {answer.text}", err=True, fg="red")
            return
        path.write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        typer.echo(f"First picture, {FIRST_PROMPT!r}, made in {time.monotonic() - began_s:.1f} s: {path}")

    def _welcome(self, key: str, noted: Path) -> None:
        typer.echo(f"\nAquatint is ready at {self._url}/v1   (Ctrl-C stops it; logs in {self._settings.home / 'logs'})\n")
        if not key:
            typer.echo("Keys were made at an earlier start; `aquatint keys create NAME` makes another.")
            return
        typer.secho(f"Your API key, shown this once:  {key}", bold=True)
        typer.echo(f"(The command line finds it in {noted}, which only you can read.)\n")
        typer.echo(SNIPPETS.format(url=self._url, key=key))


SNIPPETS = """\
curl {url}/v1/images/generations \\
  -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"prompt": "a large pink cross on the left, on a green background", "size": "256x256"}}' \\
  | python3 -c 'import base64, json, sys
open("cross.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'

from openai import OpenAI
import base64
client = OpenAI(base_url="{url}/v1", api_key="{key}")
picture = client.images.generate(prompt="a large green square on the right, on a white background", size="256x256")
open("square.png", "wb").write(base64.b64decode(picture.data[0].b64_json))
"""


async def _register(catalog: Any, url: str, token: str) -> None:
    """The node of this machine under its name, at the port and with the token of this start."""
    from common.errors import NotFound

    try:
        node = await catalog.nodes.get(NODE_NAME)
    except NotFound:
        await catalog.nodes.add(name=NODE_NAME, url=url, token=token)
    else:
        await catalog.nodes.update(node.id, url=url, token=token)
        # Starting it is an order to use it: a drain of an earlier day ends here.
        await catalog.nodes.set_state(node.id, "pending")


async def _ready(client: "httpx.AsyncClient") -> bool:
    """Whether the router knows of a node that takes work; one that is online may still be starting its worker."""
    import httpx

    try:
        answer = await client.get("/ready")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["nodes_ready"] > 0


async def _progress(client: "httpx.AsyncClient") -> str:
    import httpx

    try:
        held = (await client.get("/v1/runs")).json().get("data", [])
    except (httpx.HTTPError, ValueError):
        held = []
    if not held:
        return "making a first picture ..."
    run = held[0]
    steps = f", step {run['step']} of {run['steps']}" if run.get("steps") else ""
    return f"making a first picture: {run['phase']}{steps} ..."


async def _stopped_within(stop: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()


def _not_ready(children: list["Child"]) -> Exception:
    from common.processes import ChildFailed

    tails = "\n\n".join(f"{child.name}:\n{child.tail()}" for child in children)
    return ChildFailed(f"Nothing was ready within {READY_WITHIN_S:.0f} s. The logs say:\n{tails}")


def _say_restarted(name: str, code: int) -> None:
    typer.secho(f"The {name} ended with code {code} and is started again.", err=True, fg="yellow")
