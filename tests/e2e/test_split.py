"""One request for several pictures, made by two real nodes at once."""

import base64
import io

import httpx
from PIL import Image

from tests.e2e.conftest import Machine
from tests.e2e.test_fleet import HEADERS, fleet, generate

ASKED = {"n": 4, "seed": 5, "size": "128x128", "num_inference_steps": 20}


def pictures(reply: httpx.Response) -> list[bytes]:
    """Their pixels, in order."""
    reply.raise_for_status()
    return [Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))).tobytes() for each in reply.json()["data"]]


async def test_pictures_made_by_two_nodes_are_those_that_one_would_have_made_in_the_same_order(machine: Machine):
    router, _ = fleet(machine, "a", "b")
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=300) as client:
        alone = await generate(client, **ASKED, exact=True)
        # The router splits when it has seen what a picture takes at both.
        for _ in range(8):
            split = await generate(client, **ASKED)
            if "x-parts" in split.headers:
                break
        run = (await client.get(f"/v1/runs/{split.json()['id']}")).json()

    assert split.headers["x-parts"] == "2+2"
    assert {attempt["node"] for part in run["parts"] for attempt in part["attempts"]} == {"a", "b"}
    assert pictures(split) == pictures(alone)
    assert split.json()["usage"] == alone.json()["usage"]
