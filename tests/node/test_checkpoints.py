"""What the scan finds, what it refuses, and that it tells files by what is in them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from node.checkpoints import Layout, inspect, scan
from node.pipeline_classes import Family
from node.safetensors_header import CheckpointRefused
from tests.node.test_safetensors_header import BAD, PICKLE, safetensors_file, tensor


@pytest.fixture
def models(tiny: Path, tmp_path: Path) -> Path:
    """A models folder with one SD 1.5 checkpoint that a test may spoil."""
    shutil.copytree(tiny / "sd15", tmp_path / "models" / "org" / "fox")
    return tmp_path / "models"


def change(path: Path, **changes: Any) -> None:
    """Overwrite keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reasons(root: Path) -> list[str]:
    return [str(refusal) for refusal in scan([root]).refused]


def test_every_family_is_told_from_its_files(tiny: Path):
    found = {each.name: (each.family, each.traits.timestep_spacing) for each in scan([tiny]).checkpoints}

    assert found == {
        "sd15": (Family.SD15, "leading"),
        "sdxl": (Family.SDXL, "leading"),
        "sdxl-turbo": (Family.SDXL, "trailing"),
        "z-image": (Family.Z_IMAGE, None),
    }


def test_a_name_is_the_path_below_the_models_folder(models: Path):
    assert [each.name for each in scan([models]).checkpoints] == ["org/fox"]
    assert [each.name for each in scan([models / "org" / "fox"]).checkpoints] == ["fox"]


def test_weights_are_counted_from_headers_alone(models: Path):
    (checkpoint,) = scan([models]).checkpoints

    on_disk = sum(path.stat().st_size for path in models.rglob("*.safetensors"))
    assert checkpoint.memory_bytes("float32") == checkpoint.parameters * 4
    assert checkpoint.memory_bytes("float16") * 2 == checkpoint.memory_bytes("float32")
    assert 0.8 * on_disk < checkpoint.stored_bytes < on_disk


def test_the_sidecar_names_the_model_and_its_profile(models: Path):
    (models / "org/fox/aquatint.toml").write_text('name = "fox:1"\nprofile = "aquatint-demo"\n[overrides]\ndefault_steps = 7\n')

    (checkpoint,) = scan([models]).checkpoints

    assert (checkpoint.name, checkpoint.sidecar.profile) == ("fox:1", "aquatint-demo")
    assert checkpoint.sidecar.overrides == {"default_steps": 7}


@pytest.mark.parametrize("text", ['nam = "x"', 'profile = "nobody"', 'name = "../x"', "name = ", "name = 3"])
def test_a_sidecar_that_is_wrong_is_an_error_and_not_ignored(models: Path, text: str):
    (models / "org/fox/aquatint.toml").write_text(text)

    assert scan([models]).checkpoints == ()
    assert "aquatint.toml: not a valid sidecar" in reasons(models)[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "KandinskyPipeline"}, "pipeline class 'KandinskyPipeline' is not one this node runs"),
        ({"_class_name": ["pipeline", "StableDiffusionPipeline"]}, "is not one this node runs"),
        ({"_class_name": "os.system"}, "is not one this node runs"),
        ({"unet": ["my_code", "UNet2DConditionModel"]}, "component 'unet' may not be 'UNet2DConditionModel' of 'my_code'"),
        ({"unet": ["diffusers", "AutoencoderKL"]}, "component 'unet' may not be"),
        ({"unet": ["diffusers", "UNet2DConditionModel", "x"]}, "component 'unet' is not"),
        ({"unet": [["diffusers"], "UNet2DConditionModel"]}, "component 'unet' is not"),
        ({"vae": {"library": "os"}}, "component 'vae' is not"),
        ({"extra": ["transformers", "AutoModel"]}, "component 'extra' may not be"),
        ({"safety_checker": ["subprocess", "Popen"]}, "component 'safety_checker' may not be"),
        ({"tokenizer": [None, None]}, "component 'tokenizer' is not"),
        ({"unet": "diffusers"}, "no component unet"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "would run code"),
        ({"nested": {"a": [{"custom_pipeline": "x"}]}}, "would run code"),
        ({"_attn_implementation_internal": "x/y"}, "would run code"),
    ],
)
def test_an_index_that_names_other_code_is_refused(models: Path, changes: dict[str, Any], reason: str):
    change(models / "org/fox/model_index.json", **changes)

    assert scan([models]).checkpoints == ()
    assert reason in reasons(models)[0]
    assert "model_index.json" in reasons(models)[0]


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' would run code"),
        ("text_encoder/config.json", {"_attn_implementation_internal": "org/kernel"}, "would run code"),
        ("text_encoder/config.json", {"_attn_implementation": "org/kernel"}, "names a kernel to download"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "would run code"),
        ("scheduler/scheduler_config.json", {"trust_remote_code": True}, "would run code"),
    ],
)
def test_a_config_that_would_run_code_is_refused(models: Path, file: str, changes: dict[str, Any], reason: str):
    change(models / "org/fox" / file, **changes)

    assert scan([models]).checkpoints == ()
    assert reason in reasons(models)[0]
    assert file in reasons(models)[0]


@pytest.mark.parametrize("name", ["pickle", "old-pickle", "zip", "overlap", "body-cut-off", "product-wraps", "same-key-twice"])
def test_a_bad_weight_file_in_a_folder_is_refused_and_named(models: Path, name: str):
    (models / "org/fox/unet/diffusion_pytorch_model.safetensors").write_bytes(BAD[name][0])

    assert scan([models]).checkpoints == ()
    assert "unet/diffusion_pytorch_model.safetensors" in reasons(models)[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("notes.txt", PICKLE),
        ("tokenizer/vocab.bak", b"PK\x03\x04" + bytes(40)),
        ("pipeline.py", b"print()"),
        ("unet/kernel.so", b"\x7fELF"),
        ("unet/config.json", b"[]"),
        ("unet/config.json", b"{" * 9),
        ("unet/config.json", b" " * (1024 * 1024 + 1)),
    ],
)
def test_pickles_code_and_broken_configs_are_refused_whatever_they_are_called(models: Path, file: str, content: bytes):
    (models / "org/fox" / file).write_bytes(content)

    assert scan([models]).checkpoints == ()
    assert file in reasons(models)[0]


def test_pickled_weights_beside_safetensors_are_left_alone_and_alone_are_refused(models: Path):
    weights = models / "org/fox/unet/diffusion_pytorch_model"
    weights.with_suffix(".bin").write_bytes(PICKLE)

    assert len(scan([models]).checkpoints) == 1
    weights.with_suffix(".safetensors").unlink()
    assert scan([models]).checkpoints == ()
    assert "unet/diffusion_pytorch_model.bin: .bin files are never loaded" in reasons(models)[0]


def test_a_shard_index_may_not_name_files_elsewhere(models: Path):
    index = models / "org/fox/unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../../../etc/passwd"}}))

    assert "weight_map must name files of the same folder" in reasons(models)[0]


@pytest.mark.parametrize("missing", ["model_index.json", "scheduler/scheduler_config.json", "unet"])
def test_an_incomplete_folder_is_no_model(models: Path, missing: str):
    path = models / "org/fox" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    assert scan([models]).checkpoints == ()


def test_links_out_of_the_models_folder_are_refused(models: Path, tmp_path: Path):
    weights = models / "org/fox/unet/diffusion_pytorch_model.safetensors"
    elsewhere = tmp_path / "secret.safetensors"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)

    assert scan([models]).checkpoints == ()
    assert "leads out of the models folder" in reasons(models)[0]


def test_links_inside_the_models_folder_are_followed_and_loops_end(models: Path):
    (models / "alias").symlink_to(models / "org" / "fox")
    (models / "org" / "loop").symlink_to(models)

    assert [each.name for each in scan([models]).checkpoints] == ["alias", "org/fox"]


def test_a_missing_models_folder_is_told(tmp_path: Path):
    assert "no such folder" in reasons(tmp_path / "absent")[0]


def test_of_two_checkpoints_with_one_name_the_second_is_told(models: Path, tiny: Path):
    shutil.copytree(tiny / "sd15", models / "zoo")
    (models / "zoo/aquatint.toml").write_text('name = "org/fox"')

    assert len(scan([models]).checkpoints) == 1
    assert "the name 'org/fox' is taken" in reasons(models)[0]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("old.ckpt", PICKLE, ".ckpt files are never loaded"),
        ("old.pt", b"", ".pt files are never loaded"),
        ("x.bin", b"", ".bin files are never loaded"),
        ("x.safetensors", PICKLE, "a pickle"),
        ("x.safetensors", b"PK\x03\x04" + bytes(30), "a zip archive"),
        ("x.gguf", b"GGUF" + bytes(20), "GGUF version 0"),
        ("x.safetensors", b"GGUF" + bytes(20), "must end in .gguf"),
        ("x.SafeTensors", safetensors_file({"a": tensor(0, 4)}, bytes(4)), "must end in .safetensors"),
        ("lora.safetensors", safetensors_file({"lora_up": tensor(0, 4)}, bytes(4)), "not those of a family"),
    ],
)
def test_single_files_that_are_no_models_are_refused(tmp_path: Path, file: str, content: bytes, reason: str):
    (tmp_path / file).write_bytes(content)

    assert reason in reasons(tmp_path)[0]
    assert file in reasons(tmp_path)[0]


SINGLE_FILES = {
    Family.SD15: [
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ],
    Family.SDXL: ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight"],
    Family.Z_IMAGE: [
        "model.diffusion_model.cap_embedder.1.weight",
        "model.diffusion_model.noise_refiner.0.attention.norm_q.weight",
    ],
}


@pytest.mark.parametrize("family", SINGLE_FILES)
def test_a_single_file_is_told_by_its_tensors_and_wants_a_config_folder(family: Family, tiny: Path, tmp_path: Path):
    tensors = {name: tensor(4 * index, 4 * index + 4) for index, name in enumerate(SINGLE_FILES[family])}
    (tmp_path / "misleading-name-flux.safetensors").write_bytes(safetensors_file(tensors, bytes(4 * len(tensors))))

    assert "put misleading-name-flux.toml beside it with `config = FOLDER`" in reasons(tmp_path)[0]

    shutil.copytree(tiny / family.value, tmp_path / "configs")
    (tmp_path / "misleading-name-flux.toml").write_text('config = "configs"')
    (single,) = (each for each in scan([tmp_path]).checkpoints if each.layout is Layout.SINGLE_FILE)
    assert (single.family, single.config) == (family, tmp_path / "configs")


def test_a_config_folder_of_another_family_or_outside_is_refused(tiny: Path, tmp_path: Path):
    names = SINGLE_FILES[Family.SDXL]
    content = safetensors_file({name: tensor(4 * i, 4 * i + 4) for i, name in enumerate(names)}, bytes(8))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/x.safetensors").write_bytes(content)
    shutil.copytree(tiny / "sd15", tmp_path / "models/configs")

    (tmp_path / "models/x.toml").write_text('config = "configs"')
    assert "it is sdxl, but its config folder is sd15" in reasons(tmp_path / "models")[0]

    (tmp_path / "models/x.toml").write_text(f'config = "{tiny / "sdxl"}"')
    assert "leads out of the models folder" in reasons(tmp_path / "models")[0]


def test_files_that_changed_after_the_scan_are_refused_at_the_load(models: Path):
    (checkpoint,) = scan([models]).checkpoints
    (models / "org/fox/unet/diffusion_pytorch_model.safetensors").write_bytes(PICKLE)

    with pytest.raises(CheckpointRefused, match="a pickle"):
        inspect(checkpoint.path, root=checkpoint.root)


@pytest.mark.parametrize(
    ("endings", "variant"),
    [
        ([".fp16.safetensors"], "fp16"),
        ([".bf16.safetensors"], "bf16"),
        ([".bf16-00001-of-00001.safetensors"], "bf16"),
        ([".fp16.safetensors", ".bf16.safetensors"], "bf16"),
        ([".fp16.safetensors", ".safetensors"], None),
    ],
)
def test_half_precision_files_are_used_where_only_they_are_there(models: Path, endings: list[str], variant: str | None):
    for file in list(models.rglob("*.safetensors")):
        content = file.read_bytes()
        file.unlink()
        for ending in endings:
            file.with_name(file.name.replace(".safetensors", ending)).write_bytes(content)

    (checkpoint,) = scan([models]).checkpoints

    assert checkpoint.variant == variant
    assert checkpoint.parameters == 117386


def test_components_in_half_precisions_of_different_kinds_are_refused(models: Path):
    for component, ending in (("unet", ".fp16.safetensors"), ("vae", ".bf16.safetensors")):
        (file,) = (models / "org/fox" / component).glob("*.safetensors")
        file.rename(file.with_name(file.name.replace(".safetensors", ending)))

    assert "some components are there as fp16 only" in reasons(models)[0]


def test_links_to_nothing_and_pipes_are_refused_rather_than_waited_for(models: Path):
    (models / "x.safetensors").symlink_to(models / "nowhere")
    os.mkfifo(models / "y.safetensors")
    os.mkfifo(models / "org/fox/z.txt")

    assert [reason.rpartition(": ")[2] for reason in reasons(models)] == [
        "neither a file nor a folder",
        "a symbolic link to nothing",
        "neither a file nor a folder",
    ]
