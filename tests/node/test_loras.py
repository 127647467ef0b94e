"""LoRA files: what is found, what each was made for, and that a name never becomes a path."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.errors import LoraRefused
from common.images_api import LoraAsk
from node.checkpoints import scan
from node.lora_family import LoraShape, shape_of
from node.loras import LoraFile, Loras, find_loras
from node.models import find_models
from node.pipeline_classes import Family
from node.safetensors_header import TensorEntry

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def lora_bytes(width: int = 768, *, prefix: str = "unet.", rank: int = 4, filler: int = 0, **metadata: str) -> bytes:
    """A LoRA of one layer. filler: a byte repeated, so that files differ."""
    shapes = {f"{prefix}{ATTENTION}.lora_A.weight": [rank, width], f"{prefix}{ATTENTION}.lora_B.weight": [320, rank]}
    return file_bytes(shapes, filler, metadata)


def file_bytes(shapes: dict[str, list[int]], filler: int = 0, metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes([filler]) * end


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(loras: Loras) -> list[str]:
    return sorted(each.name for each in loras)


def choose(loras: Loras, *wanted: str, family: Family = Family.SD15) -> list[LoraFile]:
    return [file for file, _ in loras.choose([LoraAsk(name) for name in wanted], family)]


@pytest.mark.parametrize("folder", ["loras", "Lora", "models/loras", "sd/models/Lora"])
def test_loras_are_found_where_comfyui_and_a1111_have_them(tmp_path: Path, folder: str):
    put(tmp_path / folder / "ink.safetensors", lora_bytes())
    put(tmp_path / folder / "style/detail.safetensors", lora_bytes(2048))
    put(tmp_path / folder / "org/fast/pytorch_lora_weights.safetensors", lora_bytes())
    put(tmp_path / "elsewhere/stray.safetensors", lora_bytes())

    loras = find_loras([tmp_path])

    assert names(loras) == ["ink", "org/fast", "style/detail"]
    assert [each.name for each in loras.fitting(Family.SD15)] == ["ink", "org/fast"]
    assert choose(loras, "fast")[0].name == "org/fast"
    # They are no checkpoints, and are not told as checkpoints that were refused.
    assert [refusal.path.name for refusal in scan([tmp_path]).refused] == ["stray.safetensors"]


def test_a_models_folder_may_be_the_loras_folder_itself(tmp_path: Path):
    put(tmp_path / "loras/a/ink.safetensors", lora_bytes())

    assert names(find_loras([tmp_path / "loras"])) == ["a/ink"]
    assert scan([tmp_path / "loras"]).refused == ()


def test_the_models_of_its_family_list_it(tiny: Path, tmp_path: Path):
    put(tmp_path / "loras/ink.safetensors", lora_bytes())
    put(tmp_path / "loras/ink.toml", b'trigger_words = ["ink style"]\n')
    put(tmp_path / "loras/xl.safetensors", lora_bytes(2048))

    models = find_models([tiny, tmp_path])

    told = {model.name: model.capabilities["loras"] for model in models}
    assert told["sd15"] == [{"name": "ink", "trigger_words": ["ink style"]}]
    assert told["sdxl"] == [{"name": "xl", "trigger_words": []}]
    assert told["z-image"] == []


def test_the_demonstration_model_comes_with_its_own(tmp_path: Path):
    assert [each.name for each in find_models([tmp_path]).default.loras] == ["few_step"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("old.pt", b"", "pickle formats are never loaded"),
        ("old.ckpt", b"\x80\x04\x95" + bytes(20), "pickle formats are never loaded"),
        ("x.safetensors", b"\x80\x04\x95" + bytes(20), "a pickle"),
        ("x.safetensors", b"PK\x03\x04" + bytes(30), "a zip archive"),
        ("x.safetensors", lora_bytes()[:-1], "its tensors need"),
        ("x.safetensors", file_bytes({"model.weight": [4, 4]}), "no LoRA"),
        ("x.safetensors", file_bytes({"down_blocks.0.q.lora_A.weight": [4, 4]}), "of no family that is known"),
        ("x.safetensors", file_bytes({"lora_unet_x.hada_w1_a": [4, 4]}), "LoHa"),
        ("x.safetensors", file_bytes({"lora_unet_x.lokr_w1": [4, 4]}), "LoKr"),
        ("x.safetensors", file_bytes({"unet.x.lora_A.weight": [4, 4], "unet.x.dora_scale": [4, 1]}), "DoRA"),
    ],
)
def test_what_is_no_lora_is_refused_with_the_reason(tmp_path: Path, file: str, content: bytes, reason: str):
    put(tmp_path / "loras" / file, content)

    loras = find_loras([tmp_path])

    assert names(loras) == []
    assert [str(refusal).startswith(str(tmp_path / "loras" / file)) for refusal in loras.refused] == [True]
    assert reason in str(loras.refused[0])


def test_links_out_of_the_models_folder_are_refused_and_linked_folders_not_followed(tmp_path: Path):
    outside = put(tmp_path / "outside/secret.safetensors", lora_bytes())
    (tmp_path / "models/loras").mkdir(parents=True)
    (tmp_path / "models/loras/link.safetensors").symlink_to(outside)
    (tmp_path / "models/loras/folder").symlink_to(outside.parent)
    (tmp_path / "models/loras/loop").symlink_to(tmp_path / "models")

    loras = find_loras([tmp_path / "models"])

    assert names(loras) == []
    assert ["leads out of the models folder" in str(refusal) for refusal in loras.refused] == [True]


@pytest.mark.parametrize(
    "name",
    [
        "../outside/secret",
        "../outside/secret.safetensors",
        "ink.safetensors",
        "./ink",
        "a/../ink",
        "/etc/passwd",
        "ink\\..\\secret",
        "INK",
        "loras/ink",
        "",
        "abc",
        "file:///etc/passwd",
    ],
)
def test_a_name_is_a_key_and_never_a_path(tmp_path: Path, name: str):
    put(tmp_path / "outside/secret.safetensors", lora_bytes())
    put(tmp_path / "models/loras/ink.safetensors", lora_bytes(filler=1))
    loras = find_loras([tmp_path / "models"])

    with pytest.raises(LoraRefused) as told:
        choose(loras, name)
    with pytest.raises(LoraRefused):
        choose(loras, str(tmp_path / "models/loras/ink.safetensors"))

    assert (told.value.status, told.value.param, told.value.code) == (400, "loras", "lora_not_found")
    assert [file.name for file in choose(loras, "ink")] == ["ink"]


def test_a_sidecar_gives_name_aliases_trigger_words_and_air(tmp_path: Path):
    put(tmp_path / "loras/v1-000010.safetensors", lora_bytes())
    sidecar = 'name = "ink"\naliases = ["sumi-e"]\ntrigger_words = ["ink style"]\nair = "urn:air:sd1:lora:civitai:12@34"\n'
    put(tmp_path / "loras/v1-000010.toml", sidecar.encode())

    loras = find_loras([tmp_path])

    for key in ("ink", "sumi-e", "urn:air:sd1:lora:civitai:12@34"):
        assert [file.name for file in choose(loras, key)] == ["ink"]
    assert choose(loras, "ink")[0].sidecar.trigger_words == ("ink style",)
    with pytest.raises(LoraRefused):
        choose(loras, "v1-000010")


def test_the_sidecar_of_a_folder_has_its_whole_name_whatever_dots_are_in_it(tmp_path: Path):
    for version in ("v1.0", "v1.5"):
        put(tmp_path / f"loras/{version}/pytorch_lora_weights.safetensors", lora_bytes())
        put(tmp_path / f"loras/{version}.toml", f'trigger_words = ["{version}"]\n'.encode())

    loras = find_loras([tmp_path])

    assert {each.name: each.sidecar.trigger_words for each in loras} == {"v1.0": ("v1.0",), "v1.5": ("v1.5",)}


@pytest.mark.parametrize("sidecar", ['nmae = "x"', "name = 5", "=", 'name = "a:b"', 'air = "12@34"'])
def test_a_sidecar_with_a_mistake_is_told(tmp_path: Path, sidecar: str):
    put(tmp_path / "loras/ink.safetensors", lora_bytes())
    put(tmp_path / "loras/ink.toml", sidecar.encode())

    (refusal,) = find_loras([tmp_path]).refused

    assert "ink.toml: not a valid sidecar" in str(refusal)


def test_a_hash_names_a_file_from_ten_digits_on(tmp_path: Path):
    path = put(tmp_path / "loras/ink.safetensors", lora_bytes())
    put(tmp_path / "loras/other.safetensors", lora_bytes(filler=1))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    loras = find_loras([tmp_path])

    for digits in (sha256, sha256[:10], sha256[:12].upper()):
        assert [file.name for file in choose(loras, digits)] == ["ink"]
    for digits in (sha256[:9], "0" * 10, sha256[:10] + "g"):
        with pytest.raises(LoraRefused):
            choose(loras, digits)


def test_a_file_that_changed_has_another_hash(tmp_path: Path):
    path = put(tmp_path / "loras/ink.safetensors", lora_bytes())
    loras = find_loras([tmp_path])
    (file,) = loras
    before = loras.sha256(file)

    put(path, lora_bytes(rank=8))

    assert loras.sha256(file) != before
    assert loras.sha256(file) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_of_two_with_one_name_the_first_is_taken_and_the_second_told(tmp_path: Path):
    for root in ("one", "two"):
        put(tmp_path / root / "loras/ink.safetensors", lora_bytes())

    loras = find_loras([tmp_path / "one", tmp_path / "two"])

    assert [each.root.name for each in loras] == ["one"]
    assert "the name 'ink' is taken" in str(loras.refused[0])


def test_one_of_another_family_is_refused_and_so_is_the_same_twice(tmp_path: Path):
    put(tmp_path / "loras/ink.safetensors", lora_bytes())
    put(tmp_path / "loras/deep/ink-xl.safetensors", lora_bytes(2048))
    loras = find_loras([tmp_path])

    with pytest.raises(LoraRefused, match="made for sdxl; this model is sd15") as told:
        choose(loras, "ink", "ink-xl")
    with pytest.raises(LoraRefused, match="named twice"):
        choose(loras, "ink-xl", "deep/ink-xl", family=Family.SDXL)
    with pytest.raises(LoraRefused, match="Do you mean 'deep/ink-xl'"):
        choose(loras, "ink-xl-v2-deep/ink-xl", family=Family.SDXL)

    assert told.value.code == "lora_incompatible"


SHAPES = {
    "sd15": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768)},
    "sd2": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 1024)},
    "sdxl": {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 2048)},
    "sdxl, other attention": {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k.lora_down.weight": (8, 640)},
    "sdxl, text": {"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 1280)},
    "sd15, text": {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)},
    "sd15, convolution": {"unet.down_blocks.0.resnets.0.conv1.lora.down.weight": (8, 320, 3, 3)},
    "z-image": {"transformer.layers.0.attention.to_q.lora_A.weight": (8, 3840)},
    "z-image, comfyui": {"diffusion_model.layers.0.attention.to_q.lora_A.weight": (8, 3840)},
    "z-image, kohya": {"lora_unet_layers_0_attention_to_q.lora_down.weight": (8, 3840)},
    "flux.1": {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)},
    "flux.2": {"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight": (8, 3072)},
    "flux.1, kohya": {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (8, 3072)},
    "qwen-image": {"transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight": (8, 3072)},
}


@pytest.mark.parametrize("case", SHAPES)
def test_the_family_is_told_from_the_tensors_whatever_the_metadata_says(case: str):
    tensors = {name: TensorEntry("F16", shape, 0, 0) for name, shape in SHAPES[case].items()}

    assert shape_of(tensors, {"ss_base_model_version": "sd_v3000"}) == LoraShape(
        case.partition(",")[0], 8, 1, math.prod(*SHAPES[case].values())
    )


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"ss_base_model_version": "zimage"}, "z-image"),
        ({"ss_base_model_version": "flux1"}, "flux.1"),
        ({"modelspec.architecture": "flux-2-dev/lora"}, "flux.2"),
    ],
)
def test_metadata_tells_where_tensors_do_not(metadata: dict[str, str], family: str):
    tensors = {"blocks.0.proj.lora_A.weight": TensorEntry("F16", (4, 64), 0, 0)}

    assert shape_of(tensors, metadata) == LoraShape(family, 4, 1, 256)


def test_a_lora_of_a_family_fits_its_varieties():
    shape = LoraShape("qwen-image", 4, 1, 256)

    assert [shape.fits(family) for family in ("qwen-image", "qwen-image-edit", "qwen", "qwen-imagery")] == [
        True,
        True,
        False,
        False,
    ]
