"""Upscaling networks: told by their tensors in every way of naming, computed in tiles without seams, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.errors import RunCancelled
from node.engines.rrdb import OVERLAP_PX, TILE_PX, enlarged, load
from node.upscalers import Shape, find_upscalers
from tests.checkpoints.upscalers import FOLDED, TINY, in_first_names, in_second_names, random_net, write_upscaler
from tests.node.bench import noise

CPU = torch.device("cpu")


def nothing() -> None:
    """Nobody stops the work."""


def made(path: Path, picture: Image.Image) -> Image.Image:
    found = find_upscalers([path.parent.parent])
    return enlarged(load(found.by_name[path.stem].place, CPU), picture, CPU, nothing)


def test_files_in_every_way_of_naming_are_the_same_net(tmp_path: Path):
    folder, tensors = tmp_path / "upscale_models", random_net()
    ways = {
        "newest": tensors,
        "wrapped": {f"params_ema.{name}": tensor for name, tensor in tensors.items()},
        "second": in_second_names(tensors),
        "first": in_first_names(tensors),
    }
    assert len({frozenset(each) for each in ways.values()}) == 4
    picture = noise(20, 12)
    pictures = {made(write_upscaler(folder / f"{way}.safetensors", each), picture).tobytes() for way, each in ways.items()}

    found = find_upscalers([tmp_path])

    assert len(pictures) == 1
    assert {each.shape for each in found.by_name.values()} == {TINY}
    assert found.refused == ()


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        (TINY, 4),
        (FOLDED, 2),
        (Shape(4, 2, 1, doublings=1, unshuffle=1), 2),
        (Shape(4, 2, 1, doublings=3, unshuffle=1), 8),
        (Shape(4, 2, 1, doublings=2, unshuffle=4), 1),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_its_shape_says_how_much_larger_a_picture_becomes(tmp_path: Path, shape: Shape, scale: int, first: bool):
    tensors = random_net(shape)
    path = write_upscaler(tmp_path / "ESRGAN" / "x.safetensors", in_first_names(tensors, shape) if first else tensors)

    picture = made(path, noise(21, 13))

    assert find_upscalers([tmp_path]).by_name["x"].shape == shape
    assert (picture.mode, picture.size) == ("RGB", (21 * scale, 13 * scale))


def test_the_net_is_the_one_of_the_paper(tmp_path: Path):
    """Written out once more, without loops over names, for a net of one block."""
    from torch.nn.functional import conv2d, interpolate, leaky_relu

    shape = Shape(4, 2, 1, 2, 1)
    t = random_net(shape)
    net = load(find_upscalers_of(tmp_path, t), CPU)
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(3))

    def conv(name: str, value: torch.Tensor) -> torch.Tensor:
        return conv2d(value, t[f"{name}.weight"], t[f"{name}.bias"], padding=1)

    def dense(name: str, v: torch.Tensor) -> torch.Tensor:
        a = leaky_relu(conv(f"{name}.conv1", v), 0.2)
        b = leaky_relu(conv(f"{name}.conv2", torch.cat((v, a), 1)), 0.2)
        c = leaky_relu(conv(f"{name}.conv3", torch.cat((v, a, b), 1)), 0.2)
        d = leaky_relu(conv(f"{name}.conv4", torch.cat((v, a, b, c), 1)), 0.2)
        return v + 0.2 * conv(f"{name}.conv5", torch.cat((v, a, b, c, d), 1))

    f = conv("conv_first", x)
    block = f + 0.2 * dense("body.0.rdb3", dense("body.0.rdb2", dense("body.0.rdb1", f)))
    y = f + conv("conv_body", block)
    for up in ("conv_up1", "conv_up2"):
        y = leaky_relu(conv(up, interpolate(y, scale_factor=2, mode="nearest")), 0.2)
    y = conv("conv_last", leaky_relu(conv("conv_hr", y), 0.2))

    with torch.no_grad():
        torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-6)


def find_upscalers_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    write_upscaler(folder / "upscale_models" / "net.safetensors", tensors)
    return find_upscalers([folder]).by_name["net"].place


def test_a_picture_of_many_tiles_has_no_seams_and_repeats(tmp_path: Path):
    net = load(find_upscalers_of(tmp_path, random_net(Shape(4, 2, 1, 1, 1))), CPU)
    picture = noise(TILE_PX + 90, 2 * TILE_PX - OVERLAP_PX + 40)

    with torch.no_grad():
        tiled = enlarged(net, picture, CPU, nothing)
        whole = net(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 255)[0]
        again = enlarged(net, picture, CPU, nothing)

    exact = (whole.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    apart = np.abs(exact.astype(int) - np.asarray(tiled).astype(int))
    assert exact.std() > 5
    assert apart.max() <= 1
    assert again.tobytes() == tiled.tobytes()


def test_work_ends_at_the_next_tile_when_it_is_told_to(tmp_path: Path):
    net = load(find_upscalers_of(tmp_path, random_net()), CPU)
    tiles = []

    def stop() -> None:
        tiles.append(1)
        if len(tiles) == 3:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled), torch.no_grad():
        enlarged(net, noise(TILE_PX * 2, TILE_PX * 2), CPU, stop)
    assert len(tiles) == 3


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"weight": torch.zeros(1)}, "no RRDBNet"),
        ({"params.body.0.weight": torch.zeros(64, 3, 3, 3)}, "no RRDBNet"),
        ({**random_net(), "body.0.rdb1.conv1x1.weight": torch.zeros(1)}, "no plain RRDBNet: 1 of its tensors"),
        ({name: each for name, each in random_net().items() if name != "conv_hr.bias"}, "no plain RRDBNet: 1 of its tensors"),
        (random_net(Shape(4, 2, 65, 2, 1)), "beyond the sizes"),
        ({**random_net(), "conv_first.weight": torch.zeros(4, 1, 3, 3)}, "pictures of 1 channels"),
    ],
)
def test_other_networks_are_refused_with_their_reason(tmp_path: Path, tensors: dict[str, torch.Tensor], why: str):
    write_upscaler(tmp_path / "upscale_models" / "x.safetensors", tensors)

    found = find_upscalers([tmp_path])

    assert found.by_name == {}
    assert why in found.refused[0].reason


def test_pickles_disguised_or_not_links_out_and_the_name_of_the_plain_way_are_refused(tmp_path: Path):
    folder = tmp_path / "models" / "RealESRGAN"
    folder.mkdir(parents=True)
    (folder / "x4.pth").write_bytes(b"x")
    (folder / "disguised.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 90)
    save_file(random_net(), tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    save_file(random_net(), folder / "latent.safetensors")

    found = find_upscalers([tmp_path / "models"])

    reasons = {refusal.path.name: refusal.reason for refusal in found.refused}
    assert found.by_name == {}
    assert "pickle formats are never loaded" in reasons["x4.pth"]
    assert "a pickle" in reasons["disguised.safetensors"]
    assert "leads out" in reasons["link.safetensors"]
    assert "taken" in reasons["latent.safetensors"]
