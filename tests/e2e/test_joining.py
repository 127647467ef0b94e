"""A node that finds its way into the fleet by itself, as processes."""

import httpx

from common.ports import hold_port
from tests.e2e.conftest import KEY, Machine, Started, wait_for

HEADERS = {"authorization": f"Bearer {KEY}"}
BODY = {"prompt": "a red cube", "size": "64x64", "num_inference_steps": 2}


def states(router: Started) -> dict[str, tuple[str, bool]]:
    nodes = httpx.get(f"{router.url}/admin/nodes", headers=HEADERS, timeout=10).json()["data"]
    return {node["name"]: (node["state"], node["approved"]) for node in nodes}


def made(router: Started) -> int:
    return httpx.post(f"{router.url}/v1/images/generations", json=BODY, headers=HEADERS, timeout=120).status_code


def test_a_node_joins_is_approved_gets_another_token_and_comes_back_at_another_address(machine: Machine):
    router = machine.router()
    key = machine.run("keys", "create", "fleet", "--join", "--url", router.url, "--key", KEY).stdout.strip()
    own = {"AQUATINT__NODE__JOIN_URL": router.url, "AQUATINT__NODE__JOIN_KEY": key, "AQUATINT_HOME": str(machine.home / "node")}
    own |= {
        "AQUATINT__DATABASE_URL": f"sqlite:///{machine.home}/catalog.db",
        "AQUATINT__ASSETS_URL": str(machine.home / "assets"),
    }

    def start() -> Started:
        number = hold_port()
        return machine.start("node", "--port", str(number), "--name", "b", url=f"http://127.0.0.1:{number}", **own)

    node = start()
    wait_for(lambda: states(router) == {"b": ("pending", False)}, what="the node to join")
    assert made(router) == 400
    for order in ("approve", "rotate"):
        done = machine.run("nodes", order, "b", "--url", router.url, "--key", KEY)
        assert done.returncode == 0, done.stderr
    wait_for(lambda: states(router) == {"b": ("online", True)}, what="the node to be online")
    assert made(router) == 200

    node.kill()
    start()
    wait_for(lambda: states(router) == {"b": ("online", True)}, what="the node to be back")
    wait_for(lambda: made(router) == 200, what="a picture from the node that moved")
