"""What lies in a models folder and is not what it says: refused with file and reason within 2 s of a processor and 256 MB."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle, product
from math import prod
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from node.diffusers_folder import MAX_LIST_BYTES
from node.engine_names import EngineName
from node.models import find_models
from node.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS
from node.toml_files import MAX_BYTES
from tests.node.test_gguf_header import BAD as BAD_GGUF
from tests.node.test_gguf_header import STRING, claims
from tests.node.test_loras import lora_bytes
from tests.node.test_safetensors_header import BAD, PICKLE, safetensors_file, tensor

ROOT = Path(__file__).parents[2]
ROOM = MAX_HEADER_BYTES - 64
SOUND = safetensors_file({"a": tensor(0, 4)}, bytes(4))
SOUND_LORA = lora_bytes()


def filled(unit: bytes, start: bytes = b'{"a":[', end: bytes = b"0]}") -> bytes:
    """A file whose header is as long as may be, of one piece again and again."""
    return safetensors_file(start + unit * ((ROOM - len(start) - len(end)) // len(unit)) + end)


LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    # Each as large as is read, of what takes most memory or time for its bytes.
    "lists": (lambda: filled(b"[],"), "none of a model"),
    "tables": (lambda: filled(b"{},"), "none of a model"),
    "numbers": (lambda: filled(b"99999,"), "none of a model"),
    "texts": (lambda: filled(b'"ab",'), "none of a model"),
    "pairs": (lambda: filled(b'"ab":0,', b'{"a":{', b'"b":0}}'), "none of a model"),
    "towers": (lambda: filled(b"[" * 500 + b"]" * 500 + b","), "none of a model"),
    "depth": (lambda: filled(b"[", b'{"a":', b"}"), "none of a model"),
    "just-within": (lambda: filled(b'"aaaaaaaaaaaaaaaaaa":0,', b'{"a":{', b'"b":0}}'), "more than"),
    "one-text": (lambda: filled(b"a", b'{"__metadata__":{"x":"', b'"}}'), "not those of a family"),
    "as-many-tensors": (
        lambda: safetensors_file({str(n): tensor(0, 0, [0]) for n in range(MAX_TENSORS)}),
        "not those of a family",
    ),
}


def write_files(folder: Path) -> dict[str, str]:
    """Bad files, each in a models folder of its own; the reasons by the folders' names."""
    reasons: dict[str, str] = {}

    def put(name: str, file: str, content: bytes, reason: str) -> None:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        reasons[name] = reason

    for name, (content, reason) in BAD.items():
        put(f"safetensors-{name}", "x.safetensors", content, "must end in .gguf" if name == "gguf" else reason)
        put(f"lora-{name}", "loras/x.safetensors", content, reason)
    for name, (content, reason) in BAD_GGUF.items():
        put(f"gguf-{name}", "x.gguf", content, reason if content.startswith(b"GGUF") else "")
    for name, (make, reason) in LARGE.items():
        put(f"large-{name}", "x.safetensors", make(), reason)
    for name, length in (("header", 2**30), ("most", 2**64 - 1)):
        # With a file as large as it says, of holes.
        put(f"sparse-{name}", "x.safetensors", struct.pack("<Q", length) + b"{", "at most 16777216 are read")
        os.truncate(folder / f"sparse-{name}/x.safetensors", 2**31)
    put("sparse-gguf", "x.gguf", claims(STRING, struct.pack("<Q", 2**30)), "a string of 1073741824 bytes")
    os.truncate(folder / "sparse-gguf/x.gguf", 2**31)
    for file in ("x.ckpt", "x.pt", "x.bin", "x.pth"):
        put(f"called-{file}", file, PICKLE, "files are never loaded")
    return reasons


def write_beside(folder: Path) -> dict[str, str]:
    """Sound files with bad ones beside them."""
    secret = folder.parent / "secret.toml"
    secret.write_text('word = "a secret"')
    sidecars = {
        "deep": (b"a = " + b"[" * 20_000, "not a valid sidecar"),
        "large": (b"#" * (MAX_BYTES + 1), "at most 65536 are read"),
        "binary": (bytes(range(256)), "not a valid sidecar"),
        "unknown": (b'confg = "x"', "Extra inputs are not permitted"),
        "link": (None, "leads out of the models folder"),
    }
    reasons = {}
    for name, (content, reason) in sidecars.items():
        for kind in ("", "loras/"):
            place = folder / f"sidecar-{kind.strip('/')}{name}" / kind
            place.mkdir(parents=True)
            (place / "x.safetensors").write_bytes(SOUND if not kind else SOUND_LORA)
            if content is None:
                (place / "x.toml").symlink_to(secret)
            else:
                (place / "x.toml").write_bytes(content)
            reasons[place.relative_to(folder).parts[0]] = reason
    return reasons


def write_folders(folder: Path, sd15: Path) -> dict[str, str]:
    """Diffusers folders with one bad file each. Links to the sound ones would be links out of the models folder."""
    bad: dict[str, tuple[bytes, str]] = {
        "unet/config.json": (b'{"a":' + b"[" * 400_000 + b"}", "not JSON"),
        "scheduler/scheduler_config.json": (b'{"a":' * 900 + b"0" + b"}" * 900, ""),
        "tokenizer/tokenizer_config.json": (b'{"a":[' + b"[]," * (MAX_LIST_BYTES // 3 - 10) + b"0]}", ""),
        "tokenizer/special_tokens_map.json": (b" " * (MAX_LIST_BYTES + 1), f"at most {MAX_LIST_BYTES} are read"),
        "tokenizer/vocab.json": (b"[" * 60_000_000, "not a JSON object"),
        "unet/model.safetensors.index.json": (b'{"weight_map": {"a": "../../x"}}', "files of the same folder"),
        "unet/diffusion_pytorch_model.safetensors": (LARGE["pairs"][0](), "none of a model"),
        "vae/notes.txt": (PICKLE, "a pickle"),
    }
    reasons = {}
    for number, (file, (content, reason)) in enumerate(bad.items()):
        name = f"folder-{number}"
        subprocess.run(["cp", "-r", str(sd15), str(folder / name)], check=True)
        (folder / name / file).write_bytes(content)
        reasons[name] = reason
    return reasons


@pytest.fixture(scope="module")
def told(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """(what was said of each folder, what it should be)"""
    folder = tmp_path_factory.mktemp("bad") / "models"
    folder.mkdir()
    reasons = write_files(folder) | write_beside(folder) | write_folders(folder, tiny / "sd15")
    command = [sys.executable, "-m", "tests.node.refusing", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=600)
    return json.loads(ran.stdout.splitlines()[-1]), reasons


def test_every_bad_file_is_refused_by_name_and_reason_within_two_seconds_and_256_mb(
    told: tuple[dict[str, str], dict[str, str]],
):
    said, reasons = told

    assert len(reasons) > 150
    assert said.keys() == reasons.keys()
    failed = {name: text for name, text in said.items() if text.startswith("FAILED")}
    assert failed == {}
    wrong = {name: (said[name], reason) for name, reason in reasons.items() if reason and reason not in said[name]}
    assert wrong == {}


def test_what_a_link_leads_to_outside_is_never_told(told: tuple[dict[str, str], dict[str, str]]):
    assert not [text for text in told[0].values() if "secret" in text]


def test_the_bounds_are_held_by_the_kernel(tmp_path: Path):
    """Else every test above would say nothing."""
    for action, ended in (("bytearray(300 * 1024 * 1024)", "MemoryError"), ("exec('while True: pass')", "")):
        code = f"from tests.node.refusing import bound; bound(); {action}"
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, timeout=300, check=False)
        assert ran.returncode != 0
        assert ended in ran.stderr.decode()


HEADERS: dict[str, tuple[str, ...]] = {
    # What decides what each kind is.
    "clip_vision": (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "visual_projection.weight",
    ),
    "ipadapter": ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "controlnet": (
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_down_blocks.0.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ),
    "loras": ("unet.down_blocks.1.attn2.to_k.lora_A.weight", "unet.down_blocks.1.attn2.to_k.lora_B.weight"),
    "upscale_models": ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up1.weight", "conv_last.weight"),
    "vae_approx": ("1.weight", "decoder.layers.0.weight"),
    "": ("img_in.weight", "txt_in.weight", "double_stream_modulation_img.lin.weight", "input_blocks.0.0.weight"),
}
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (5,), (4, 4), (768, 768), (0, 0, 0, 0), (8, 4, 3, 3), (1,) * 8)


@pytest.mark.parametrize("kind", HEADERS)
def test_no_shape_of_any_tensor_makes_a_look_fail_in_another_way(kind: str, tmp_path: Path):
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)
    for shapes in product(SHAPES, repeat=min(2, len(HEADERS[kind]))):
        header: dict[str, Any] = {}
        end = 0
        for name, shape in zip(HEADERS[kind], cycle(shapes)):
            begin, end = end, end + 4 * prod(shape)
            header[name] = tensor(begin, end, list(shape))
        (folder / "taesd.safetensors").write_bytes(safetensors_file(header, bytes(end)))

        find_models([tmp_path])


VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, "", [], {}, [[]], {"a": []}, ["a", None], [1, 2], float("nan"))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_no_value_in_a_config_makes_a_look_fail_in_another_way(file: str, tiny: Path, tmp_path: Path):
    copytree(tiny / "sd15", tmp_path / "sd15")
    path = tmp_path / "sd15" / file
    sound = json.loads(path.read_text())

    for key, value in product(sound, VALUES):
        path.write_text(json.dumps(sound | {key: value}))
        found = find_models([tmp_path], [EngineName.DIFFUSERS])
        assert found.refused or "sd15" in found.by_name
