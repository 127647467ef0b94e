"""The one-file checkpoints people download make the same pictures, but for rounding, as the folders they came from."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from common.images_api import ImageRequest, Size, Task
from node.checkpoints import family_of
from node.models import Models, find_models
from node.pipeline_classes import Family
from node.resolve import resolve
from node.safetensors_header import TensorEntry
from tests.checkpoints.single_file import write

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
    if (tiny / kind / "transformer").is_dir():
        others = [part.name for part in (tiny / kind).iterdir() if part.name == "vae" or part.name.startswith("text_encoder")]
        only_configs(tiny / kind, models / "configs", weights_of=tuple(others))
        shutil.copy(tiny / kind / "transformer/diffusion_pytorch_model.safetensors", file)
    else:
        only_configs(tiny / kind, models / "configs")
        write(tiny / kind, file)
    (models / "one.toml").write_text('config = "configs"\n')


def pictures(models: Models, steps: int) -> list[Image.Image]:
    """Of the single file and of its folder."""
    from node.engines.diffusers_engine import DiffusersEngine

    torch.set_num_threads(1)
    engine, made = DiffusersEngine("cpu"), []
    for name in ("one", "folder"):
        model = models.by_name[name]
        request = ImageRequest(task=Task.GENERATION, prompt="a fox", seed=41, size=Size(64, 64), num_inference_steps=steps)
        engine.load(model.load_order("cpu", "float32"))
        spec = resolve(request, name, model.profile, embed_parameters=False).spec
        made += engine.generate(spec, None, lambda step, steps: None, lambda index, image: None).images
    return made


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "z-image"])
def test_a_single_file_makes_the_same_picture_as_its_folder(kind: str, tiny: Path, tmp_path: Path):
    write_single_file(kind, tiny, tmp_path)
    shutil.copytree(tiny / kind, tmp_path / "folder")
    models = find_models([tmp_path])

    difference = ImageChops.difference(*pictures(models, 4))
    assert max(high for _, high in difference.getextrema()) <= LEVELS
    assert models.by_name["one"].checkpoint.parameters == models.by_name["folder"].checkpoint.parameters


@pytest.mark.parametrize("kind", ["flux.1-dev", "flux.2-klein-4b", "qwen-image", "sd3-medium"])
def test_a_transformers_file_makes_the_very_picture_of_its_folder(kind: str, families: Path, tmp_path: Path):
    write_single_file(kind, families, tmp_path)
    shutil.copytree(families / kind, tmp_path / "folder")
    models = find_models([tmp_path])
    one, folder = pictures(models, 2)

    assert one.tobytes() == folder.tobytes()
    checkpoint, whole = (models.by_name[name].checkpoint for name in ("one", "folder"))
    assert (checkpoint.family, checkpoint.parameters) == (whole.family, whole.parameters)


@pytest.mark.parametrize(("kind", "configs"), [("flux.1-dev", "flux.1-kontext"), ("qwen-image", "qwen-image-edit-plus")])
def test_of_families_with_the_same_tensors_the_configs_say_which_it_is(kind: str, configs: str, families: Path, tmp_path: Path):
    write_single_file(configs, families, tmp_path)
    shutil.copy(families / kind / "transformer/diffusion_pytorch_model.safetensors", tmp_path / "one.safetensors")

    assert find_models([tmp_path]).by_name["one"].profile.name == configs


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("vector_in.in_layer.weight", "double_blocks.0.img_attn.qkv.weight"), Family.FLUX1),
        (("txt_in.weight", "double_stream_modulation_img.lin.weight"), Family.FLUX2_KLEIN),
        (("pos_embed", "joint_blocks.0.context_block.attn.qkv.weight"), Family.SD3),
        (("txt_in.weight", "double_blocks.0.img_attn.qkv.weight"), None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_makers_own_names_tell_the_family(names: tuple[str, ...], family: Family | None, prefix: str):
    assert family_of({prefix + name: TensorEntry("F32", (1,), 0, 4) for name in names}) is family
