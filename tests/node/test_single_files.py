"""The one-file checkpoints people download make the same pictures, but for rounding, as the folders they came from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import ImageChops

from common.images_api import ImageRequest, Size, Task
from node.models import find_models
from node.resolve import resolve
from tests.node.conftest import ROOT

LEVELS = 2
"""Of 255. One matrix of SDXL's is stored transposed in a single file, so its products are summed in another order."""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def only_configs(source: Path, target: Path, *, weights_of: tuple[str, ...] = ()) -> None:
    """A folder without weight files, but for some components."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for component in weights_of:
        shutil.copytree(source / component, target / component, dirs_exist_ok=True)


def write_single_file(kind: str, tiny: Path, models: Path) -> None:
    """`models/one.safetensors` with its sidecar, and the configs it needs in `models/configs`."""
    file = models / "one.safetensors"
    if kind == "z-image":
        only_configs(tiny / kind, models / "configs", weights_of=("vae", "text_encoder"))
        shutil.copy(tiny / kind / "transformer/diffusion_pytorch_model.safetensors", file)
    else:
        only_configs(tiny / kind, models / "configs")
        command = [sys.executable, "-m", "tests.checkpoints.single_file", str(tiny / kind), str(file)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (models / "one.toml").write_text('config = "configs"\n')


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "z-image"])
def test_a_single_file_makes_the_same_picture_as_its_folder(kind: str, tiny: Path, tmp_path: Path):
    from node.engines.diffusers_engine import DiffusersEngine

    torch.set_num_threads(1)
    write_single_file(kind, tiny, tmp_path)
    shutil.copytree(tiny / kind, tmp_path / "folder")
    models = find_models([tmp_path])
    engine = DiffusersEngine("cpu")
    pictures = []
    for name in ("one", "folder"):
        model = models.by_name[name]
        request = ImageRequest(task=Task.GENERATION, prompt="a fox", seed=41, size=Size(64, 64), num_inference_steps=4)
        engine.load(model.load_order("cpu", "float32"))
        spec = resolve(request, name, model.profile, embed_parameters=False).spec
        pictures.append(engine.generate(spec, None, lambda step, steps: None, lambda index, image: None).images[0])

    difference = ImageChops.difference(*pictures)
    assert max(high for _, high in difference.getextrema()) <= LEVELS
    assert models.by_name["one"].checkpoint.parameters == models.by_name["folder"].checkpoint.parameters
