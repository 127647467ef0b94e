"""What stands before the nodes while it is measured. Each with the configuration that a careful operator would give it.

nginx twice: as one would set it up for large bodies (unbuffered, kept-alive connections), and with its own defaults.
LiteLLM with its default number of retries, without spend logs and telemetry. Aquatint as it is started by everyone:
API keys, placement, metrics and logs on, its catalog in SQLite, every run committed some milliseconds after it was sent.
What flushes a run to disk is the commit of its result, which is a node's, so it is in no figure here: stub nodes write none.
"""

import getpass
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from common.ports import hold_port
from router.bench.processes import process
from router.bench.stub_node import SIZES_KB, model

KEY = "bench-key-0123456789"
READY_WITHIN_S = 300.0
MAX_UPLOAD_BYTES = 16 * 1024 * 1024

_NGINX = """
worker_processes 1; daemon off; user {user}; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 64m; keepalive_requests 1000000; {paths}
  upstream nodes {{ {servers} keepalive 128; }}
  server {{ listen 127.0.0.1:{unbuffered} backlog=1024; tcp_nodelay on;
    location / {{ proxy_pass http://nodes; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_read_timeout 300s; proxy_buffering off; proxy_request_buffering off;
      proxy_buffer_size 128k; proxy_buffers 8 128k; proxy_busy_buffers_size 256k; }} }}
  server {{ listen 127.0.0.1:{defaults} backlog=1024;
    location / {{ proxy_pass http://nodes; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""
_LITELLM = """
model_list:
{models}
litellm_settings: {{telemetry: false, request_timeout: 300, drop_params: true}}
router_settings: {{routing_strategy: least-busy}}
general_settings: {{disable_spend_logs: true}}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that forwards to the nodes. pid: of its process; None for the nodes themselves."""

    name: str
    port: int
    pid: int | None
    slowness: int = 1
    """Its load is divided by this, so that a round ends in time."""


class NotReady(Exception):
    """A target did not answer; the text holds the end of its log."""


@contextmanager
def stub_nodes(work: Path, ports: Sequence[int], *, core: int | None, database_url: str) -> Iterator[list[int]]:
    """The nodes; their process ids."""
    with ExitStack() as stack:
        pids = []
        for port in ports:
            arguments = [sys.executable, "-m", "router.bench.stub_node", "--port", str(port), "--database-url", database_url]
            log = work / f"node-{port}.log"
            pids.append(stack.enter_context(process(arguments, core=core, log=log)).pid)
            wait_until(partial(answers, port, "/node/v1/status"), "a stub node", log)
        yield pids


@contextmanager
def aquatint(
    work: Path, nodes: Sequence[int], *, core: int | None, environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """This project's router, from the home `work`/aquatint, whose catalog has been made. environment: more settings."""
    port = hold_port()
    environment = {
        "AQUATINT_HOME": str(work / "aquatint"),
        "AQUATINT_BOOTSTRAP_KEY": KEY,
        "AQUATINT__LOG_FORMAT": "json",
        "AQUATINT__MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
        **(environment or {}),
    }
    log = work / "aquatint.log"
    with process([sys.executable, "-m", "router", "--port", str(port)], core=core, log=log, environment=environment) as started:
        wait_until(lambda: answers(port, "/health"), "the router", log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {KEY}"}) as client:
            for number, node in enumerate(nodes):
                added = client.post("/admin/nodes", json={"name": f"stub-{number}", "url": f"http://127.0.0.1:{node}"})
                added.raise_for_status()
        wait_until(lambda: answers(port, "/ready"), "the router's nodes", log)
        yield Target("aquatint", port, started.pid)


@contextmanager
def nginx(work: Path, nodes: Sequence[int], *, core: int | None) -> Iterator[list[Target]]:
    """Both of nginx, one process."""
    folder = work / "nginx"
    folder.mkdir()
    unbuffered, defaults = hold_port(), hold_port()
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (folder / "nginx.conf").write_text(
        _NGINX.format(
            user=getpass.getuser(),
            folder=folder,
            paths=" ".join(f"{name}_temp_path {folder}/{name};" for name in temporary),
            servers=" ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in nodes),
            unbuffered=unbuffered,
            defaults=defaults,
        )
    )
    log = work / "nginx.log"
    with process(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], core=core, log=log) as started:
        wait_until(lambda: answers(unbuffered, "/stats"), "nginx", log)
        yield [Target("nginx", unbuffered, started.pid), Target("nginx, defaults", defaults, started.pid)]


@contextmanager
def litellm(work: Path, nodes: Sequence[int], program: str, *, core: int | None) -> Iterator[Target]:
    """LiteLLM's proxy. program: its console command."""
    port = hold_port()
    entry = (
        '  - {{model_name: "bench-*", litellm_params: {{model: "openai/bench-*", api_base: "http://127.0.0.1:{node}/v1", '
        "api_key: none}}, model_info: {{mode: image_generation}}}}"
    )
    config = work / "litellm.yaml"
    config.write_text(_LITELLM.format(models="\n".join(entry.format(node=node) for node in nodes)))
    arguments = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "PYTHONPATH": "",
    }
    log = work / "litellm.log"
    with process([*arguments, "--telemetry", "False"], core=core, log=log, environment=environment) as started:
        wait_until(lambda: _makes(port), "LiteLLM", log)
        yield Target("litellm", port, started.pid, slowness=8)


def installed(program: str) -> str | None:
    """Where a program is; None when it is not there. nginx is often outside a user's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def answers(port: int, path: str) -> bool:
    """Whether something at this port is there and well."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _makes(port: int) -> bool:
    asked = {"model": model(SIZES_KB[0]), "prompt": "a cat"}
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/images/generations", json=asked, timeout=20, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Raises: NotReady: it did not become true in time."""
    end_s = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end_s:
            raise NotReady(f"{what} did not start; its log ends:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
