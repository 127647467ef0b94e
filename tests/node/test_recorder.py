"""A router's run is the same row whether its router or its node comes to write it first."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from common.catalog import Catalog, open_asset_store
from common.images_api import Task, encoded, read_json_request
from node.profile import profiles
from node.recorder import Recorder, Sender
from node.resolve import resolve
from router.placement import Ask
from router.relay import Accepted, row_of


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "dall-e-3"},
        {"n": 2, "size": "128x64", "seed": 7, "quality": "high", "negative_prompt": "dark", "background": "opaque"},
        {"size": "auto", "output_format": "webp", "output_compression": 50, "response_format": "b64_json", "user": "u"},
        {"num_inference_steps": 3, "guidance_scale": 1.5, "prompt": "a (fox:1.2) ☃"},
    ],
)
async def test_a_routers_run_is_recorded_by_its_node_as_by_its_router(catalog: Catalog, tmp_path: Path, fields: dict[str, Any]):
    asked = read_json_request(Task.GENERATION, orjson.dumps({"prompt": "a fox"} | fields))
    accepted = Accepted(
        run_id="run_1",
        request_id="req_1",
        request=asked.settled("sd15"),
        requested_model=asked.model,
        ask=Ask("sd15", "generation", 1.0),
        key_id="key_1",
        public_url="http://router",
        arrived_s=0.0,
    )
    row = row_of(accepted)

    body, _ = encoded(accepted.request, row.request)
    at_node = read_json_request(Task.GENERATION, b"".join(body))
    spec = resolve(at_node, "sd15", profiles()["sd15"], embed_parameters=False).spec
    sender = Sender(request_id="req_1", base_url="", run_id="run_1", attempt=1, key_id="key_1", requested_model=asked.model)
    recorder = Recorder(catalog, open_asset_store(str(tmp_path / "assets")), node="a")
    ticket = await recorder.begin(at_node, spec, sender, "run_1")

    assert ticket.run == row
