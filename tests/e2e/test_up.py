"""One command, one picture."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from common.ports import hold_port
from tests.e2e.conftest import KEY, Machine, Started, answers, gone, wait_for

ENGINE_PACKAGES = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy"}


def picture(path: Path) -> Image.Image:
    """The picture in a file."""
    return Image.open(io.BytesIO(path.read_bytes()))


def test_one_command_makes_a_picture_and_prints_what_to_paste(machine: Machine):
    up = machine.up()

    text = up.output()
    assert KEY in text
    assert picture(machine.home / "first-picture.png").format == "PNG"
    assert re.search(r"made in \d+\.\d s: .*first-picture\.png", text)
    folder = machine.home / "pasted"
    folder.mkdir()
    _, curl, python = re.split(r"^(?=curl |from openai)", text, flags=re.MULTILINE)
    subprocess.run(["bash", "-euc", curl], cwd=folder, check=True, timeout=120)
    subprocess.run([sys.executable, "-c", python], cwd=folder, check=True, timeout=120)
    assert [picture(folder / name).size for name in ("cross.png", "square.png")] == [(256, 256)] * 2

    assert up.end(signal.SIGINT) == 0


def test_the_first_picture_waits_for_a_node_that_is_slow_to_start_and_a_second_start_finds_everything_again(machine: Machine):
    # A router that waits for no one refuses whatever comes before the node takes work.
    up = machine.up(AQUATINT__ROUTER__NO_CAPACITY_WAIT_S="0")

    assert "failed" not in up.output()
    assert picture(machine.home / "first-picture.png").format == "PNG"
    headers = {"authorization": f"Bearer {KEY}"}
    first = httpx.post(
        f"{up.url}/v1/images/generations", json={"prompt": "a red cube", "seed": 41}, headers=headers, timeout=120
    ).json()
    assert up.end() == 0

    again = machine.up()

    assert KEY not in again.output()
    assert "first-picture" not in again.output()
    run = httpx.get(f"{again.url}/v1/runs/{first['id']}", headers=headers).json()
    assert run["status"] == "succeeded"
    second = httpx.post(
        f"{again.url}/v1/images/generations", json={"prompt": "a red cube", "seed": 41}, headers=headers, timeout=120
    ).json()
    assert second["data"][0]["b64_json"] == first["data"][0]["b64_json"]


def test_images_of_one_request_differ_and_the_same_seed_makes_the_same_bytes(up: Started):
    sdk = OpenAI(base_url=f"{up.url}/v1", api_key=KEY)

    def ask(n: int, seed: int) -> list[bytes]:
        answer = sdk.images.generate(prompt="a red cube", n=n, size="128x96", extra_body={"seed": seed})  # type: ignore[call-overload]
        assert [item.seed for item in answer.data] == list(range(seed, seed + n))
        return [base64.b64decode(item.b64_json) for item in answer.data]

    three = ask(3, 41)

    assert len(set(three)) == 3
    assert ask(3, 41) == three
    assert ask(1, 42) == three[1:2]
    assert {Image.open(io.BytesIO(each)).size for each in three} == {(128, 96)}


def test_a_url_can_be_fetched_without_a_key_and_asked_about_with_head(up: Started):
    sdk = OpenAI(base_url=f"{up.url}/v1", api_key=KEY)

    answer = sdk.images.generate(prompt="a red cube", response_format="url", size="64x64")

    assert answer.data is not None
    url = answer.data[0].url or ""
    assert url.startswith(f"{up.url}/v1/assets/")
    got, head = httpx.get(url), httpx.head(url)
    assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(got.content)).size == (64, 64)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(got.content)), b"")
    assert httpx.get(url + "0").status_code == 404


def test_the_command_line_makes_a_file_and_prints_tables_and_json(house: tuple[Machine, Started]):
    machine, _ = house
    out = machine.home / "out.webp"

    made = machine.run("generate", "a red cube", "-o", str(out), "--size", "64x64")
    wrong = machine.run("generate", "a red cube", "--size", "sixty")

    assert made.returncode == 0, made.stderr
    assert picture(out).format == "WEBP"
    assert (wrong.returncode, "WIDTHxHEIGHT" in wrong.stderr) == (1, True)
    for command, expected in (("nodes", "local"), ("keys", "admin"), ("models", "aquatint")):
        table = machine.run(command, "list")
        assert table.returncode == 0, table.stderr
        assert expected in table.stdout
        assert isinstance(json.loads(machine.run(command, "list", "--json").stdout), list)
    assert KEY not in machine.run("keys", "list").stdout
    assert machine.run("doctor", "--json").returncode == 0


def test_a_node_that_dies_is_started_again_and_when_up_is_killed_its_children_end(machine: Machine):
    up = machine.up()
    node = json.loads(machine.run("nodes", "list", "--json").stdout)[0]
    port = int(node["url"].rpartition(":")[2])
    pid = int(
        subprocess.run(
            ["pgrep", "-f", f"[-]m node .*--port {port}"], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )

    os.kill(pid, signal.SIGKILL)

    wait_for(lambda: gone(pid), what="the end of the node")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    wait_for(lambda: "The node ended" in up.output(), what="word of the restart")
    # Its own word: the router may not have missed it yet.
    wait_for(lambda: answers(f"{node['url']}/ready"), what="the node to come back")
    assert machine.run("generate", "a red cube", "-q", "-o", str(machine.home / "x.png")).returncode == 0
    found = subprocess.run(["pgrep", "-P", str(up.pid)], capture_output=True, text=True, check=True)
    children = [int(child) for child in found.stdout.split()]
    assert len(children) == 2

    up.kill()

    wait_for(lambda: all(gone(child) for child in children), what="the end of router and node", within_s=60)


def test_a_port_or_a_home_in_use_is_said_at_once(house: tuple[Machine, Started]):
    machine, up = house

    second = machine.run("up", "--port", up.url.rpartition(":")[2])

    third = machine.run("up", "--port", str(hold_port()))

    assert (second.returncode, third.returncode) == (1, 1)
    assert "in use" in second.stderr
    assert "already runs" in third.stderr


def test_a_wrong_setting_stops_the_start_with_its_name(machine: Machine):
    refused = machine.run("up", AQUATINT__ROUTER__PROT="1", AQUATINT__LOG_LEVEL="loud")

    assert refused.returncode == 2
    assert "AQUATINT__LOG_LEVEL" in refused.stderr


def test_help_answers_without_loading_torch(machine: Machine):
    heavy = {"torch", "fastapi", "sqlalchemy", "httpx"}
    script = f"import sys; from common.cli import build_cli; build_cli(); print(sorted({heavy} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    helped = machine.run("--help")

    assert loaded.stdout.strip() == "[]"
    for command in ("up", "router", "node", "keys", "nodes", "models", "generate", "db", "doctor"):
        assert command in helped.stdout


def test_the_router_starts_where_no_engine_is_installed(machine: Machine, tmp_path: Path):
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ENGINE_PACKAGES}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
    )
    missing = subprocess.run(
        [sys.executable, "-c", "import torch"], env={"PYTHONPATH": str(block)}, capture_output=True, text=True, check=False
    )
    assert "No module named 'torch'" in missing.stderr

    router = machine.router(PYTHONPATH=str(block))

    assert answers(f"{router.url}/metrics")
    assert answers(f"{router.url}/ready", status=503)


def test_prompts_and_keys_are_in_no_log_even_at_debug_level(machine: Machine):
    up = machine.up(AQUATINT__LOG_LEVEL="debug", AQUATINT__LOG_FORMAT="json")
    prompt, wrong = "zebra-marker-7261 in a hat", "aq_wrong-marker-0123456789"
    sent = {"prompt": prompt, "negative_prompt": "gnu-marker-7261", "size": "64x64", "model": "nobody-marker-7261"}

    made = machine.run("generate", prompt, "-q", "-o", str(machine.home / "x.png"), "--size", "64x64")
    for key in (KEY, wrong):
        httpx.post(f"{up.url}/v1/images/generations", json=sent, headers={"authorization": f"Bearer {key}"}, timeout=60)
    httpx.post(f"{up.url}/v1/images/generations?key={KEY}", content=b'{"prompt": "broken-marker-7261', timeout=60)

    assert made.returncode == 0, made.stderr
    assert up.end() == 0
    logs = {path.name: path.read_text() for path in (machine.home / "logs").iterdir()}
    assert all("run_id" in text for text in logs.values()), "the logs hold no run: this test looks at the wrong files"
    for name, text in logs.items():
        for secret in ("marker", KEY, (machine.home / "secret.key").read_text().strip()):
            assert secret not in text, name
        assert all(json.loads(line)["timestamp"] for line in text.splitlines() if line.startswith("{"))
