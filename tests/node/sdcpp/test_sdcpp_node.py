"""A node with nothing but sd.cpp as its users meet it: a real process, real files, OpenAI's own SDK."""

import base64
import io
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from PIL import Image

from tests.node.process import NodeProcess, running_node
from tests.node.sdcpp.test_sdcpp_worker import NEXT_PICTURE_S, processor_s
from tests.node.test_gguf_header import BAD
from tests.node.test_node_process import run_row

ASK: dict[str, Any] = {"prompt": "a fox", "size": "64x64"}
FEW: dict[str, Any] = {"seed": 41, "steps": 2, "guidance_scale": 1}


@pytest.fixture(scope="module")
def node(sdcpp_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(sdcpp_files, tmp_path_factory.mktemp("home")) as started:
        yield started


def picture(answer: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))


@pytest.mark.parametrize(("model", "file_format"), [("ovis", "safetensors"), ("ovis-q8", "gguf"), ("ovis-q4", "gguf")])
async def test_a_file_makes_a_picture_and_the_run_says_what_made_it(node: NodeProcess, model: str, file_format: str):
    with node.sdk() as sdk:
        raw = sdk.images.with_raw_response.generate(model=model, **ASK, extra_body=FEW)

    assert picture(raw.parse()).size == (64, 64)
    effective = (await run_row(node, raw.headers["x-run-id"])).effective
    assert effective is not None
    assert (effective["engine"], effective["format"], effective["format_chosen"]) == ("sdcpp", file_format, "the only one")


def test_the_status_says_what_was_chosen_and_why(node: NodeProcess):
    told = {model.id: (model.engine, model.format, model.chosen) for model in node.status().models}

    assert told["ovis"] == ("sdcpp", "safetensors", "the only one")
    assert told["ovis-q8"] == ("sdcpp", "gguf", "the only one")


def png(image: Image.Image) -> tuple[str, bytes, str]:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "image.png", out.getvalue(), "image/png"


def test_an_edit_shows_the_model_the_picture_and_a_mask_keeps_the_rest(node: NodeProcess):
    start = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(3 * 64 * 64))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    with node.sdk() as sdk:
        shown = sdk.images.with_raw_response.edit(model="klein", image=png(start), prompt="a fox", extra_body=FEW)
        masked = sdk.images.edit(model="ovis", image=png(start), mask=png(mask), prompt="a fox", extra_body=FEW)

    assert picture(shown.parse()).tobytes() != start.tobytes()
    assert json.loads(shown.content)["parameters"]["method"] == "edit"
    made = picture(masked).convert("RGB")
    assert made.tobytes() == Image.composite(made, start, mask).tobytes()
    assert made.tobytes() != start.tobytes()


def test_a_stream_brings_previews(node: NodeProcess):
    with node.sdk() as sdk:
        events = list(sdk.images.generate(model="ovis", **ASK, stream=True, partial_images=2, extra_body=FEW | {"steps": 6}))

    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]


def worker_of(node: NodeProcess) -> psutil.Process:
    return next(child for child in psutil.Process(node.process.pid).children() if "node.worker" in child.cmdline())


def test_a_cancelled_run_frees_the_node_and_the_next_picture_comes_soon(node: NodeProcess):
    long = {"model": "ovis", "prompt": "a fox", "n": 10, "size": "512x512", "steps": 100, "seed": 1}
    with ThreadPoolExecutor(1) as pool, node.http() as client, node.sdk() as sdk:
        before = picture(sdk.images.generate(model="ovis", **ASK, extra_body=FEW))
        answer = pool.submit(client.post, "/v1/images/generations", json=long)
        run_id, first = node.running(), worker_of(node)
        assert client.post("/node/v1/cancel", json={"run_id": run_id}).json()["cancelled"]
        after = picture(sdk.images.generate(model="ovis", **ASK, extra_body=FEW))
        second = worker_of(node)
        metrics = client.get("/metrics").text

    assert answer.result(60).status_code == 499
    assert after.tobytes() == before.tobytes()
    assert second.pid != first.pid
    assert processor_s(second.pid) < NEXT_PICTURE_S
    assert "aquatint_node_worker_restarts_total 0.0" in metrics


def test_a_prompt_with_commands_opens_no_file_and_ends_no_process(node: NodeProcess):
    with node.sdk() as sdk:
        plain = sdk.images.generate(model="ovis", **ASK, extra_body=FEW)
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.images.generate(model="ovis", **ASK | {"prompt": "a fox<lora:../../x:1>"}, extra_body=FEW)
        odd = sdk.images.generate(model="ovis", **ASK | {"prompt": "a (fox:.)"}, extra_body=FEW)

    assert refused.value.code == "lora_not_found"
    assert picture(plain).size == picture(odd).size == (64, 64)


def test_what_the_model_has_not_is_told(node: NodeProcess):
    with node.sdk() as sdk, pytest.raises(openai.BadRequestError, match="this model has 'checkpoint'"):
        sdk.images.generate(model="ovis", **ASK, extra_body=FEW | {"sampler": "ddim"})


def test_garbage_is_refused_with_its_file_and_its_reason(sdcpp_files: Path, tmp_path: Path):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("string-1GiB", "array-2^60", "body-cut-off", "product-wraps", "overlap"):
        (models / f"{name}.gguf").write_bytes(BAD[name][0])
    whole = (sdcpp_files / "ovis-q8.gguf").read_bytes()
    (models / "no-parts.gguf").write_bytes(whole)
    (models / "half.gguf").write_bytes(whole[: len(whole) // 2])
    (models / "language-model.safetensors").write_bytes((sdcpp_files / "parts/ovis-llm.safetensors").read_bytes())

    with running_node(models, tmp_path / "home") as started, started.http() as client:
        told = client.post("/node/v1/load", json={"model": "no-parts"}).json()["error"]["message"]

    for words in (
        "string-1GiB.gguf: a string of 1073741824 bytes",
        "array-2^60.gguf: the array 'k' has 1152921504606846976 items",
        "body-cut-off.gguf: its tensors need",
        "half.gguf: its tensors need",
        "product-wraps.gguf: tensor 'a': its dimensions multiply",
        "overlap.gguf: tensor 'b' overlaps another",
        "no-parts.gguf: sd.cpp needs the llm of ovis-image: name it in no-parts.toml under [components]",
        "language-model.safetensors: its tensors are not those of a family",
    ):
        assert words in told


def test_files_of_one_name_are_one_model(sdcpp_files: Path, tmp_path: Path):
    models = tmp_path / "models"
    shutil.copytree(sdcpp_files, models, ignore=shutil.ignore_patterns("*klein*"))
    for name in ("ovis", "ovis-q8", "ovis-q4"):
        sidecar = models / f"{name}.toml"
        sidecar.write_text('name = "ovis"\n' + sidecar.read_text())
    # Room for q8, and not for the file it was made from.
    files = [models / "ovis.safetensors", models / "ovis-q8.gguf"]
    budget = sum(file.stat().st_size for file in (models / "parts").iterdir())
    budget += sum(file.stat().st_size for file in files) // 2

    with running_node(models, tmp_path / "home", AQUATINT__NODE__MEMORY_BUDGET_BYTES=str(budget)) as started:
        (model,) = started.status().models
        with started.sdk() as sdk:
            answer = sdk.images.generate(model="ovis", **ASK, extra_body=FEW)

    assert (model.id, model.format) == ("ovis", "gguf")
    assert model.chosen == f"sdcpp comes first on cpu; the largest for it that fits {budget:,} bytes"
    assert picture(answer).size == (64, 64)


def test_only_the_worker_loads_the_engine(node: NodeProcess):
    def holds_engine(process: psutil.Process) -> bool:
        return any("libstable-diffusion" in each.path for each in process.memory_maps())

    assert not holds_engine(psutil.Process(node.process.pid))
    assert holds_engine(worker_of(node))
