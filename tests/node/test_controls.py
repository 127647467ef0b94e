"""ControlNets on disk: found where programs keep them, told by their tensors, looked up by name and kind, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ControlRefused
from common.images_api import ControlAsk, ControlKind, OutputFormat, Upload
from node.controls import find_controls
from node.models import find_models
from node.pipeline_classes import Family
from tests.checkpoints.controls import control_net, write_control
from tests.checkpoints.tiny import unet
from tests.node.test_control_nets import SIZED

PICTURE = Upload("control[0].image", (), OutputFormat.PNG, 8, 8)


def ask(**fields: Any) -> ControlAsk:
    return ControlAsk(PICTURE, **fields)


@pytest.fixture(scope="module")
def nets() -> dict[str, Any]:
    return {family: control_net(unet(**sizes)) for family, sizes in SIZED.items()}


def test_they_are_found_as_comfyui_and_a1111_keep_them_and_told_by_their_tensors(tmp_path: Path, nets: dict[str, Any]):
    write_control(tmp_path / "comfyui" / "models" / "controlnet" / "control_canny_fp16.safetensors", nets["sdxl"])
    write_control(tmp_path / "a1111" / "models" / "ControlNet" / "1.1" / "edges.safetensors", nets["sd15"], inventors=True)
    nets["sd15"].save_pretrained(tmp_path / "plain" / "controlnet" / "depth-v1.1", variant="fp16")
    (tmp_path / "a1111" / "models" / "ControlNet" / "1.1" / "edges.toml").write_text('kind = "lineart"\n')

    found = find_controls([tmp_path])

    assert found.refused == ()
    assert {(each.name, each.family, each.kind) for each in found} == {
        ("control_canny_fp16", Family.SDXL, ControlKind.CANNY),
        ("1.1/edges", Family.SD15, ControlKind.LINEART),
        ("depth-v1.1", Family.SD15, ControlKind.DEPTH),
    }
    sizes = {each.family: each.memory_bytes("float16") for each in found}
    assert sizes[Family.SDXL] == 2 * sum(each.numel() for each in nets["sdxl"].parameters())


def test_a_models_folder_does_not_take_them_for_checkpoints(tiny: Path, tmp_path: Path, nets: dict[str, Any]):
    write_control(tmp_path / "controlnet" / "canny.safetensors", nets["sd15"])

    models = find_models([tiny, tmp_path])

    assert models.refused == ()
    assert models.by_name["sd15"].capabilities["controls"] == [{"name": "canny", "kind": "canny"}]
    assert models.by_name["sdxl"].capabilities["controls"] == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("control_v11p_sd15_canny", ControlKind.CANNY),
        ("t2i-openpose-xl", ControlKind.POSE),
        ("Depth", ControlKind.DEPTH),
        ("canny-and-depth", None),
        ("uncanny", None),
    ],
)
def test_a_kind_is_a_word_of_the_name_where_no_sidecar_says_it(
    tmp_path: Path, nets: dict[str, Any], name: str, kind: ControlKind | None
):
    write_control(tmp_path / "controlnet" / f"{name}.safetensors", nets["sd15"])

    assert [each.kind for each in find_controls([tmp_path])] == [kind]


def test_one_is_chosen_by_name_or_by_kind_and_never_for_another_family(tmp_path: Path, nets: dict[str, Any]):
    for name in ("b-canny", "a-canny", "other"):
        write_control(tmp_path / "controlnet" / f"{name}.safetensors", nets["sd15"])
    controls = find_controls([tmp_path])

    assert controls.choose(ask(kind=ControlKind.CANNY), Family.SD15).name == "a-canny"
    assert controls.choose(ask(name="b-canny", kind=ControlKind.CANNY), Family.SD15).name == "b-canny"
    assert controls.choose(ask(name="other", kind=ControlKind.DEPTH), Family.SD15).name == "other"
    for wrong, family, code in (
        (ask(name="../etc"), Family.SD15, "control_not_found"),
        (ask(kind=ControlKind.POSE), Family.SD15, "control_not_found"),
        (ask(kind=ControlKind.CANNY), Family.SDXL, "control_not_found"),
        (ask(name="a-canny"), Family.SDXL, "control_incompatible"),
        (ask(name="a-canny", kind=ControlKind.DEPTH), Family.SD15, "control_incompatible"),
    ):
        with pytest.raises(ControlRefused) as told:
            controls.choose(wrong, family)
        assert (told.value.status, told.value.param, told.value.code) == (400, "control", code)


def lying(path: Path) -> None:
    """A header of one tensor that says it is longer than the file."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def of_tensors(**shapes: tuple[int, ...]) -> Any:
    """Writes a file of tensors; `__` in a name stands for a dot."""
    return lambda path: save_file({name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}, path)


SD = {"controlnet_cond_embedding__conv_in__weight": (4, 3, 3, 3), "controlnet_down_blocks__0__weight": (8, 8, 1, 1)}


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda path: path.write_bytes(b"\x80\x04\x95" + b"\x00" * 90), "a pickle"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + b"\x00" * 90), "zip archive"),
        (lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{" + b" " * 90), "header of 1099511627776 bytes"),
        (lying, "its tensors need 40 bytes"),
        (of_tensors(weight=(1,)), "no ControlNet"),
        (of_tensors(lora_controlnet=(1,)), "a Control-LoRA"),
        (of_tensors(task_embedding=(1,), **SD), "a union"),
        (of_tensors(adapter__body__0__weight=(1,)), "T2I-Adapter"),
        (of_tensors(controlnet_x_embedder__weight=(1,)), "of a transformer"),
        (of_tensors(down_blocks__0__attn2__to_k__weight=(8, 1024), **SD), "Stable Diffusion 2"),
    ],
)
def test_what_is_none_or_lies_is_refused_with_its_reason(tmp_path: Path, write: Any, why: str):
    (tmp_path / "controlnet").mkdir()
    write(tmp_path / "controlnet" / "canny.safetensors")

    found = find_controls([tmp_path])

    assert list(found) == []
    assert why in found.refused[0].reason


def test_pickles_links_out_and_configs_with_code_are_refused(tmp_path: Path, nets: dict[str, Any]):
    root, outside = tmp_path / "models", tmp_path / "outside.safetensors"
    write_control(outside, nets["sd15"])
    folder = root / "controlnet"
    nets["sd15"].save_pretrained(folder / "code")
    config = folder / "code" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"x": "y"}}))
    nets["sd15"].save_pretrained(folder / "other")
    config = folder / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "FluxControlNetModel"}))
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "old.pth").write_bytes(b"x")
    write_control(folder / "sidecar.safetensors", nets["sd15"])
    (folder / "sidecar.toml").write_text('kind = "tile"\n')

    found = find_controls([root])

    assert list(found) == []
    reasons = {refusal.path.relative_to(folder).as_posix(): refusal.reason for refusal in found.refused}
    assert "would run code" in reasons["code/config.json"]
    assert "'FluxControlNetModel'" in reasons["other/config.json"]
    assert "leads out of the models folder" in reasons["link.safetensors"]
    assert "pickle formats are never loaded" in reasons["old.pth"]
    assert "not a valid sidecar" in reasons["sidecar.toml"]
