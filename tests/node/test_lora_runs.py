"""LoRAs through the whole node: named, applied by a real worker, recorded, written into the file, or refused."""

import io
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.catalog import Catalog, RunStatus, open_asset_store
from common.errors import AquatintError, InvalidRequest, LoraMismatch, LoraRefused
from common.images_api import AssetLinks, LoraAsk
from node.decoding import Decoder
from node.memory_ladder import MemoryLadder
from node.memory_limits import MemoryLimits
from node.metrics import NodeMetrics
from node.models import Models, find_models
from node.recorder import Recorder, Sender
from node.residency import Residency
from node.runs import Answer, Runs
from node.scheduler import Pace, Scheduler
from node.worker.handle import Worker
from tests.checkpoints.loras import random_lora, write_lora
from tests.checkpoints.tiny import unet
from tests.node.test_runs import ASK, worker

__all__ = ["worker"]

SENDER = Sender(request_id="req_1", base_url="http://node")


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models") / "loras"
    tensors = random_lora(unet(text_width=32), "unet")
    write_lora(folder / "ink.safetensors", tensors)
    (folder / "ink.toml").write_text('trigger_words = ["ink style", "a fox"]\nair = "urn:air:sd1:lora:civitai:1@2"\n')
    write_lora(folder / "torn.safetensors", {name.replace("to_q", "to_z"): tensor for name, tensor in tensors.items()})
    wide = {"unet.x.attn2.to_k.lora_A.weight": (4, 2048), "unet.x.attn2.to_k.lora_B.weight": (8, 4)}
    write_lora(folder / "xl.safetensors", {name: tensors.popitem()[1].new_zeros(shape) for name, shape in wide.items()})
    return find_models([tiny, folder.parent])


@pytest.fixture
async def runs(worker: Worker, models: Models, sqlite_catalog: Catalog, tmp_path: Path) -> AsyncGenerator[Runs]:
    pace, residency = Pace(), Residency(worker)
    yield Runs(
        models=models,
        worker=worker,
        ladder=MemoryLadder(residency, MemoryLimits(), dtype="auto"),
        scheduler=Scheduler(max_queued=1, pace=pace, is_resident=residency.is_resident),
        pace=pace,
        recorder=Recorder(sqlite_catalog, open_asset_store(str(tmp_path / "assets")), node="test"),
        links=AssetLinks("secret"),
        metrics=NodeMetrics(),
        node="test",
        decoder=Decoder(max_pixels=1_000_000),
        embed_parameters=True,
    )
    await worker.unload("sd15")


@pytest.fixture
async def sqlite_catalog(sqlite_catalog_url: str, secret_key: bytes) -> AsyncGenerator[Catalog]:
    opened = await Catalog.open(sqlite_catalog_url, secret_key=secret_key)
    yield opened
    await opened.close()


async def make(runs: Runs, **changes: Any) -> Answer:
    return await runs.make(ASK._replace(**changes), SENDER)


def opened(answer: Answer) -> Image.Image:
    return Image.open(io.BytesIO(answer.pictures[0].content or b""))


async def test_before_with_and_after_and_what_is_said_of_it(runs: Runs, models: Models, sqlite_catalog: Catalog):
    before = await make(runs)
    with_it = await make(runs, loras=(LoraAsk("ink", 0.8),))
    after = await make(runs)

    assert opened(after).tobytes() == opened(before).tobytes() != opened(with_it).tobytes()
    (file,) = (each for each in models.loras if each.name == "ink")
    sha256 = models.loras.sha256(file)
    layers = {"name": "ink", "scale": 0.8, "sha256": sha256, "layers": file.shape.layers}
    assert with_it.head["parameters"]["loras"] == [layers]
    assert before.head["parameters"]["loras"] == []
    run = await sqlite_catalog.runs.get(with_it.run_id)
    assert run.effective is not None
    assert run.effective["loras"] == [layers]
    assert run.request["loras"] == [{"name": "ink", "scale": 0.8, "trigger": False}]
    info = opened(with_it).info
    assert info["parameters"].splitlines()[0] == "a fox <lora:ink:0.8>"
    assert f'Lora hashes: "ink: {sha256[:10]}", Version: aquatint' in info["parameters"]
    assert json.loads(info["aquatint"])["loras"] == [{"name": "ink", "scale": 0.8, "sha256": sha256}]
    assert "lora" not in opened(before).info["parameters"] + opened(before).info["aquatint"]


async def test_a_tag_a_hash_an_air_and_the_field_mean_the_same_file(runs: Runs, models: Models, sqlite_catalog: Catalog):
    (file,) = (each for each in models.loras if each.name == "ink")
    field = await make(runs, loras=(LoraAsk("ink", 0.5),))
    tag = await make(runs, prompt="a fox <lora:ink:0.5>")
    digits = await make(runs, loras=(LoraAsk(models.loras.sha256(file)[:10], 0.5),))
    air = await make(runs, prompt="<lora:urn:air:sd1:lora:civitai:1@2:0.5>a fox")

    assert len({each.pictures[0].content for each in (field, tag, digits, air)}) == 1
    assert tag.head["parameters"]["prompt"] == "a fox"
    run = await sqlite_catalog.runs.get(tag.run_id)
    assert run.prompt == "a fox <lora:ink:0.5>"


async def test_trigger_words_are_put_behind_the_prompt_on_request_and_once(runs: Runs):
    answer = await make(runs, loras=(LoraAsk("ink", 0.5, trigger=True),))

    assert answer.head["parameters"]["prompt"] == "a fox, ink style"


async def test_the_picture_in_the_file_can_be_made_again_from_its_text(runs: Runs):
    made = await make(runs, loras=(LoraAsk("ink", 0.75),))
    prompt = opened(made).info["parameters"].splitlines()[0]

    assert opened(await make(runs, prompt=prompt)).tobytes() == opened(made).tobytes()


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"loras": (LoraAsk("nobody"),)}, LoraRefused, "lora_not_found"),
        ({"prompt": "a fox <lora:../../etc/passwd:1>"}, LoraRefused, "lora_not_found"),
        ({"loras": (LoraAsk("xl"),)}, LoraRefused, "lora_incompatible"),
        ({"loras": (LoraAsk("ink"),), "prompt": "<lora:ink:1>"}, LoraRefused, "invalid_value"),
        ({"prompt": "<lora:ink:5>"}, InvalidRequest, "invalid_value"),
        ({"prompt": "<lora:ink>" * 9}, InvalidRequest, "array_above_max_length"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_recorded(
    runs: Runs, sqlite_catalog: Catalog, changes: dict[str, Any], kind: type[AquatintError], code: str
):
    with pytest.raises(kind) as told:
        await make(runs, **changes)

    assert (told.value.status, told.value.code) == (400, code)
    assert await sqlite_catalog.runs.list() == []


async def test_one_that_does_not_fit_is_answered_422_and_the_next_run_is_as_before(runs: Runs, sqlite_catalog: Catalog):
    before = await make(runs)

    with pytest.raises(LoraMismatch, match="layers match nothing in it") as told:
        await make(runs, loras=(LoraAsk("ink"), LoraAsk("torn")))

    assert (told.value.status, told.value.param, told.value.code) == (422, "loras", "lora_mismatch")
    assert opened(await make(runs)).tobytes() == opened(before).tobytes()
    statuses = [run.status for run in await sqlite_catalog.runs.list()]
    assert sorted(statuses) == [RunStatus.FAILED, RunStatus.SUCCEEDED, RunStatus.SUCCEEDED]


async def test_a_lora_that_left_for_want_of_room_comes_back_as_it_was(runs: Runs, worker: Worker, models: Models):
    (file,) = (each for each in models.loras if each.name == "ink")
    first = await make(runs, loras=(LoraAsk("ink"),))

    await worker.drop_loras("sd15", [models.loras.sha256(file)])

    assert opened(await make(runs)).tobytes() != opened(first).tobytes()
    assert opened(await make(runs, loras=(LoraAsk("ink"),))).tobytes() == opened(first).tobytes()
