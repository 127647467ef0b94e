"""Of several files for one model, memory, device and what is installed decide which is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

from node.checkpoints import Checkpoint, FileFormat, Layout
from node.choice import choose
from node.engine_names import EngineName
from node.pipeline_classes import Family
from node.traits import Traits

BOTH = frozenset(EngineName)
ONLY_SDCPP = frozenset({EngineName.SDCPP})
ONLY_DIFFUSERS = frozenset({EngineName.DIFFUSERS})
FOLDER = Checkpoint(
    name="z",
    path=Path("/models/z"),
    root=Path("/models"),
    layout=Layout.FOLDER,
    format=FileFormat.DIFFUSERS,
    engine=EngineName.DIFFUSERS,
    family=Family.Z_IMAGE,
    traits=Traits(),
    variant=None,
    parameters=1000,
    largest_component=700,
    largest_tensor=100,
    stored_bytes=2000,
)


def single(name: str, file_format: FileFormat, stored_bytes: int) -> Checkpoint:
    return replace(
        FOLDER,
        path=Path("/models") / name,
        layout=Layout.SINGLE_FILE,
        format=file_format,
        engine=EngineName.SDCPP,
        stored_bytes=stored_bytes,
    )


FILE = single("z.safetensors", FileFormat.SAFETENSORS, 2000)
Q8 = single("z-q8.gguf", FileFormat.GGUF, 1100)
Q4 = single("z-q4.gguf", FileFormat.GGUF, 600)
ALL = [Q4, FOLDER, Q8, FILE]


@pytest.mark.parametrize(
    ("checkpoints", "engines", "device", "dtype", "budget_bytes", "chosen", "reason"),
    [
        # One file, whatever it is.
        ([Q4], BOTH, "cuda", "bfloat16", 1, Q4, "the only one"),
        ([FOLDER], BOTH, "cpu", "float32", None, FOLDER, "the only one"),
        # A GPU takes diffusers when that fits, and else the least quantised file that does.
        (ALL, BOTH, "cuda", "bfloat16", None, FOLDER, "diffusers comes first on cuda; the largest for it"),
        (ALL, BOTH, "cuda", "bfloat16", 2000, FOLDER, "that fits 2,000 bytes"),
        (ALL, BOTH, "cuda", "bfloat16", 1999, Q8, "the largest of 4 that fits 1,999 bytes; none for diffusers does"),
        (ALL, BOTH, "cuda", "bfloat16", 1000, Q4, "the largest of 4 that fits 1,000 bytes"),
        (ALL, BOTH, "cuda", "bfloat16", 10, Q4, "the smallest of 4; none fits 10 bytes"),
        (ALL, BOTH, "cuda", "float32", 3000, FILE, "none for diffusers does"),
        (ALL, BOTH, "mps", "bfloat16", None, FOLDER, "diffusers comes first on mps"),
        # A CPU takes sd.cpp.
        (ALL, BOTH, "cpu", "float32", None, FILE, "sdcpp comes first on cpu"),
        (ALL, BOTH, "cpu", "float32", 1500, Q8, "that fits 1,500 bytes"),
        ([FOLDER, Q4], BOTH, "cpu", "float32", 10_000, Q4, "sdcpp comes first on cpu"),
        # Only what is installed counts.
        (ALL, ONLY_SDCPP, "cuda", "bfloat16", None, FILE, "the largest of 3; none for diffusers does"),
        (ALL, ONLY_DIFFUSERS, "cpu", "float32", None, FOLDER, "the only one; there are others for sdcpp"),
        ([FOLDER, Q4], ONLY_SDCPP, "cuda", "bfloat16", None, Q4, "the only one; there are others for diffusers"),
    ],
)
def test_the_choice_and_its_reason(
    checkpoints: list[Checkpoint],
    engines: frozenset[EngineName],
    device: str,
    dtype: str,
    budget_bytes: int | None,
    chosen: Checkpoint,
    reason: str,
):
    choice = choose(checkpoints, engines=engines, device=device, dtype=dtype, budget_bytes=budget_bytes)

    assert choice is not None
    assert choice.checkpoint.path == chosen.path
    assert reason in choice.reason


def test_without_an_engine_for_it_there_is_no_choice():
    assert choose([Q4], engines=ONLY_DIFFUSERS, device="cpu", dtype="float32", budget_bytes=None) is None
