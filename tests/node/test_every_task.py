"""Whatever a model of any family claims, as a folder and as a single file: it does it, does it again, and stops when told."""

from pathlib import Path

import pytest
from PIL import Image

from common.images_api import ImageRequest, OutputFormat, Size, Task, Upload
from node.engines.base import RunCancelled, RunSpec
from node.masks import Canvas
from node.models import Models, find_models
from node.pipeline_classes import class_of
from node.resolve import resolve
from tests.node.bench import Bench
from tests.node.test_single_files import write_single_file

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

TINY = ("sd15", "sdxl", "sdxl-turbo", "z-image")
LARGER = (
    "flux.1-dev",
    "flux.1-schnell",
    "flux.1-kontext",
    "flux.2-klein-4b",
    "qwen-image",
    "qwen-image-edit",
    "qwen-image-edit-plus",
    "sana",
    "sd3-medium",
)
PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (16, 16, 48, 48))


def spec_of(models: Models, name: str, task: Task, *, masked: bool = False) -> RunSpec:
    """A run of a task in as few steps as tell one that was cancelled from one that was not."""
    profile = models.by_name[name].profile
    uploads = () if task is Task.GENERATION else (Upload("image", (), OutputFormat.PNG, 64, 64),)
    request = ImageRequest(
        task=task,
        prompt="" if task is Task.VARIATION else "a fox",
        seed=41,
        size=Size(64, 64),
        num_inference_steps=max(profile.min_steps, 3),
        strength=None if task is Task.GENERATION else 0.99,
        images=uploads,
    )
    return resolve(request, name, profile, embed_parameters=False, masked=masked).spec


def does(bench: Bench, spec: RunSpec, canvas: Canvas | None) -> None:
    """The seed is reproduced, and a cancel at the first step is the end of all denoising."""

    def made() -> bytes:
        return bench.engine.generate(spec, canvas, lambda step, steps: None, lambda index, image: None).images[0].tobytes()

    def stop(step: int, steps: int) -> None:
        raise RunCancelled("enough")

    first = made()
    assert len(first) == 64 * 64 * 3
    loaded = bench.engine._loaded[spec.model][1]
    denoiser = getattr(loaded, class_of(bench.models.by_name[spec.model].checkpoint.family).denoiser)
    calls: list[int] = []
    hook = denoiser.register_forward_hook(lambda *given: calls.append(1))
    try:
        with pytest.raises(RunCancelled):
            bench.engine.generate(spec, canvas, stop, lambda index, image: None)
    finally:
        hook.remove()
    # With guidance some run the denoiser twice a step.
    assert 1 <= len(calls) <= 2
    assert made() == first


def does_all(bench: Bench, name: str) -> None:
    tasks = class_of(bench.models.by_name[name].checkpoint.family).tasks
    assert tasks
    for task in sorted(tasks):
        canvas = None if task is Task.GENERATION else Canvas(PICTURE, None, (PICTURE,))
        does(bench, spec_of(bench.models, name, task), canvas)
    if Task.EDIT in tasks:
        does(bench, spec_of(bench.models, name, Task.EDIT, masked=True), Canvas(PICTURE, MASK, (PICTURE,)))


@pytest.fixture(scope="module")
def bench(tiny: Path, families: Path) -> Bench:
    return Bench(find_models([tiny, families]))


@pytest.mark.parametrize("name", [*TINY, *LARGER])
def test_a_folder_does_whatever_its_family_claims(bench: Bench, name: str):
    does_all(bench, name)


@pytest.mark.parametrize(
    "kind", ["sd15", "sdxl", "z-image", "flux.1-dev", "flux.1-kontext", "flux.2-klein-4b", "qwen-image", "sd3-medium"]
)
def test_a_single_file_does_whatever_its_family_claims(kind: str, tiny: Path, families: Path, tmp_path: Path):
    write_single_file(kind, tiny if kind in TINY else families, tmp_path)

    does_all(Bench(find_models([tmp_path])), "one")
