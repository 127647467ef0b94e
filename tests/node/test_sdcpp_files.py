"""What sd.cpp may run is told by tensors, and is whole before it is loaded; none of it needs sd.cpp."""

from pathlib import Path

import pytest

from common.images_api import Size
from node.checkpoints import FileFormat, Layout, inspect, scan
from node.engine_names import EngineName
from node.models import find_models
from node.pipeline_classes import Family
from node.safetensors_header import CheckpointRefused
from tests.node.test_gguf_header import gguf_file
from tests.node.test_gguf_header import tensor as gguf_tensor
from tests.node.test_safetensors_header import safetensors_file

Shapes = dict[str, list[int]]
PREFIX = "model.diffusion_model."
SD15_CLIP = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [1, 1]}
SDXL_CLIPS = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": [1, 1],
    "conditioner.embedders.1.model.ln_final.weight": [1],
}
VAE = {"first_stage_model.decoder.conv_in.weight": [1, 1, 1, 1]}
SD15_UNET = {
    "input_blocks.0.0.weight": [1, 4, 1, 1],
    "middle_block.1.norm.weight": [1],
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [1, 768],
}
SDXL_UNET = {
    "input_blocks.0.0.weight": [1, 4, 1, 1],
    "middle_block.1.norm.weight": [1],
    "label_emb.0.0.weight": [1, 1],
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [1, 2048],
}
FLUX = {"img_in.weight": [1, 64], "double_blocks.0.img_mod.lin.weight": [1, 1], "vector_in.in_layer.weight": [1, 1]}
OVIS = {"img_in.weight": [1, 64], "double_blocks.0.img_mlp.gate_proj.weight": [1, 1]}
KLEIN = {"img_in.weight": [1, 128], "double_stream_modulation_img.lin.weight": [1, 1]}
Z_IMAGE = {"cap_embedder.0.weight": [1], "noise_refiner.0.attention.q_norm.weight": [1]}
QWEN_IMAGE = {"img_in.weight": [1, 64], "transformer_blocks.0.img_mod.1.weight": [1, 1]}


def prefixed(shapes: Shapes) -> Shapes:
    return {PREFIX + name: shape for name, shape in shapes.items()}


def size_of(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def as_gguf(shapes: Shapes) -> bytes:
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append(gguf_tensor(name, shape[::-1], offset))
        offset += -(-4 * size_of(shape) // 32) * 32
    return gguf_file([], tensors, bytes(offset))


def as_safetensors(shapes: Shapes) -> bytes:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * size_of(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return safetensors_file(header, bytes(offset))


def put(folder: Path, name: str, shapes: Shapes, sidecar: str = "") -> Path:
    """A file of its ending's kind, its sidecar, and the parts that names."""
    path = folder / name
    path.write_bytes(as_gguf(shapes) if path.suffix == ".gguf" else as_safetensors(shapes))
    if sidecar:
        path.with_suffix(".toml").write_text(sidecar)
    (folder / "parts").mkdir(exist_ok=True)
    for part in ("a", "b", "c"):
        if f"parts/{part}.safetensors" in sidecar:
            (folder / "parts" / f"{part}.safetensors").write_bytes(as_safetensors({part: [8]}))
    return path


LLM = '[components]\nllm = "parts/a.safetensors"\nvae = "parts/b.safetensors"\n'
TAE = '[components]\nllm = "parts/a.safetensors"\ntae = "parts/b.safetensors"\n'
CLIP_T5 = '[components]\nclip_l = "parts/a.safetensors"\nt5xxl = "parts/b.safetensors"\nvae = "parts/c.safetensors"\n'
CLIPS = '[components]\nclip_l = "parts/a.safetensors"\nclip_g = "parts/b.safetensors"\nvae = "parts/c.safetensors"\n'


@pytest.mark.parametrize("ending", ["gguf", "safetensors"])
@pytest.mark.parametrize(
    ("shapes", "sidecar", "family", "whole"),
    [
        (prefixed(SD15_UNET) | SD15_CLIP | VAE, "", Family.SD15, True),
        (prefixed(SDXL_UNET) | SDXL_CLIPS | VAE, "", Family.SDXL, True),
        (SD15_UNET, CLIPS, Family.SD15, False),
        (SDXL_UNET, CLIPS, Family.SDXL, False),
        (prefixed(SDXL_UNET), CLIPS, Family.SDXL, False),
        (FLUX, CLIP_T5, Family.FLUX1, False),
        (prefixed(FLUX), CLIP_T5, Family.FLUX1, False),
        (OVIS, TAE, Family.OVIS_IMAGE, False),
        (KLEIN, TAE, Family.FLUX2_KLEIN, False),
        (Z_IMAGE, LLM, Family.Z_IMAGE, False),
        (prefixed(QWEN_IMAGE), LLM, Family.QWEN_IMAGE, False),
    ],
)
def test_families_are_told_by_tensors_in_either_format(
    tmp_path: Path, ending: str, shapes: Shapes, sidecar: str, family: Family, whole: bool
):
    put(tmp_path, f"called-flux-and-is-not.{ending}", shapes, sidecar)

    found = scan([tmp_path])

    (checkpoint,) = found.checkpoints
    assert found.refused == ()
    assert (checkpoint.family, checkpoint.whole) == (family, whole)
    assert (checkpoint.engine, checkpoint.layout) == (EngineName.SDCPP, Layout.SINGLE_FILE)
    assert checkpoint.format is (FileFormat.GGUF if ending == "gguf" else FileFormat.SAFETENSORS)


@pytest.mark.parametrize(
    ("shapes", "sidecar", "reason"),
    [
        (FLUX, "", "sd.cpp needs the clip_l of flux.1: name it in x.toml under [components]"),
        (FLUX, CLIP_T5.replace("t5xxl", "clip_g"), "sd.cpp needs the t5xxl of flux.1"),
        (OVIS, "", "sd.cpp needs the llm of ovis-image"),
        (KLEIN, LLM.replace("vae", "llm_vision"), "sd.cpp needs the tae or vae of flux.2-klein"),
        (prefixed(SD15_UNET) | SD15_CLIP, "", "sd.cpp needs the tae or vae of sd15"),
        (FLUX | {"img_in.weight": [1, 384]}, CLIP_T5, "not those of a family this node runs"),
        (KLEIN | {"single_blocks.47.linear1.weight": [1, 1]}, LLM, "not those of a family this node runs"),
        (SD15_UNET | {"input_blocks.0.0.weight": [1, 9, 1, 1]}, CLIPS, "not those of a family this node runs"),
        ({"token_embd.weight": [1, 1]}, LLM, "not those of a family this node runs"),
        (OVIS, LLM.replace("parts/a.safetensors", "parts/none.gguf"), "none.gguf: a symbolic link to nothing"),
        (OVIS, LLM.replace("parts/a.safetensors", "../secret.safetensors"), "leads out of the models folder"),
        (OVIS, LLM.replace("parts/a.safetensors", "/etc/passwd"), "leads out of the models folder"),
        (OVIS, LLM.replace("parts/a.safetensors", "parts/garbage.gguf"), "garbage.gguf: GGUF version 77"),
        (OVIS, LLM.replace("parts/a.safetensors", "parts/pickle.safetensors"), "pickle.safetensors: not safetensors: a pickle"),
        (OVIS, '[components]\nlora = "x"\n', "not a valid sidecar"),
        (OVIS, 'engine = "other"\n' + LLM, "not a valid sidecar"),
    ],
)
def test_what_is_not_whole_or_not_sound_is_refused(tmp_path: Path, shapes: Shapes, sidecar: str, reason: str):
    models = tmp_path / "models"
    models.mkdir()
    put(models, "x.gguf", shapes, sidecar)
    (tmp_path / "secret.safetensors").write_bytes(as_safetensors({"a": [1]}))
    (models / "parts/garbage.gguf").write_bytes(b"GGUF" + b"\x4d\x00\x00\x00" + bytes(40))
    (models / "parts/pickle.safetensors").write_bytes(b"\x80\x04" + bytes(40))

    found = scan([models])

    assert found.checkpoints == ()
    assert any(reason in str(refusal) for refusal in found.refused)


def test_files_of_one_name_and_family_are_one_model_and_others_are_refused(tmp_path: Path):
    for file in ("a.safetensors", "b.gguf", "c.gguf"):
        put(tmp_path, file, OVIS if file == "c.gguf" else Z_IMAGE, 'name = "z"\n' + LLM)

    found = find_models([tmp_path], engines={EngineName.SDCPP})

    assert [each.path.name for each in found.by_name["z"].checkpoints] == ["a.safetensors", "b.gguf"]
    assert [(each.path.name, each.reason) for each in found.refused] == [
        ("c.gguf", "the name 'z' is taken by another checkpoint")
    ]


def test_without_the_engine_the_model_is_refused_and_the_package_named(tmp_path: Path):
    put(tmp_path, "z.gguf", Z_IMAGE, LLM)

    found = find_models([tmp_path], engines=set())

    assert found.by_name == {}
    assert [refusal.reason for refusal in found.refused if refusal.path.name == "z.gguf"] == [
        "needs the engine sdcpp: pip install 'aquatint[sdcpp]'"
    ]


def test_a_sidecar_settles_the_engine(tmp_path: Path):
    path = put(tmp_path, "x.safetensors", prefixed(SDXL_UNET) | SDXL_CLIPS | VAE, 'engine = "diffusers"\n')
    assert "`config = FOLDER`" in str(scan([tmp_path]).refused[0])

    path.with_suffix(".toml").write_text('engine = "sdcpp"\n')
    assert [each.engine for each in scan([tmp_path]).checkpoints] == [EngineName.SDCPP]


def test_the_profile_of_flux_is_told_by_its_guidance(tmp_path: Path):
    put(tmp_path, "one.gguf", FLUX, CLIP_T5)
    put(tmp_path, "two.gguf", FLUX | {"guidance_in.in_layer.weight": [1, 1]}, CLIP_T5)

    models = find_models([tmp_path], engines={EngineName.SDCPP})

    assert {name: model.profile.name for name, model in models.by_name.items()} == {
        "one": "flux.1-schnell",
        "two": "flux.1-dev",
    }
    assert models.default.profile.default_size == Size(1024, 1024)


def test_a_file_that_changed_after_the_scan_is_refused_at_the_load(tmp_path: Path):
    path = put(tmp_path, "z.gguf", Z_IMAGE, LLM)
    (checkpoint,) = scan([tmp_path]).checkpoints
    (tmp_path / "parts/a.safetensors").write_bytes(b"\x80\x04" + bytes(40))

    with pytest.raises(CheckpointRefused, match="a pickle"):
        inspect(path, root=tmp_path, engine=checkpoint.engine)


def test_memory_is_what_all_files_hold_whatever_the_number_format(tmp_path: Path):
    put(tmp_path, "z.gguf", Z_IMAGE, LLM)

    (checkpoint,) = scan([tmp_path]).checkpoints

    assert checkpoint.memory_bytes("float32") == checkpoint.memory_bytes("bfloat16") == 4 * (2 + 8 + 8)
