"""Tiny autoencoders: found and told apart, drawing previews and nothing else, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from node.engines.families import calls_of
from node.models import find_models
from node.pipeline_classes import Family
from node.tiny_vaes import Latents, find_tiny_vaes
from tests.node.bench import Bench, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def tiny_vae(channels: int = 4, *, seed: int = 1, width: int = 8) -> Any:
    """A whole one of diffusers, narrower than the real ones."""
    import diffusers

    torch.manual_seed(seed)
    return diffusers.AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4
    ).eval()


def in_makers_names(vae: Any) -> dict[str, torch.Tensor]:
    """The decoder as TAESD's maker saves it, behind a clamp."""
    names = {name: name.split(".") for name in vae.decoder.state_dict()}
    renamed = {name: ".".join((str(int(parts[1]) + 1), *parts[2:])) for name, parts in names.items()}
    return {renamed[name]: tensor.contiguous() for name, tensor in vae.decoder.state_dict().items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def with_vae(tiny: Path, folder: Path, *names: str) -> Bench:
    found = find_models([tiny, folder])
    return Bench(replace(found, by_name={name: found.by_name[name] for name in names}))


def seen(bench: Bench, name: str) -> tuple[list[Image.Image], list[bytes]]:
    """The previews of a run, and its pictures."""
    previews: list[Image.Image] = []
    made = bench.make(name, None, lambda index, image: previews.append(image), steps=4, previews=2)
    return previews, pixels(made)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "z-image"])
def test_it_draws_the_previews_and_never_the_picture(tiny: Path, tmp_path: Path, name: str):
    word = {"sd15": "taesd", "sdxl": "taesdxl", "z-image": "taef1"}[name]
    vae = tiny_vae(16 if name == "z-image" else 4)
    write(tmp_path / "a" / "vae_approx" / f"{word}_decoder.safetensors", in_makers_names(vae))
    vae.save_pretrained(tmp_path / "b" / "VAE-approx" / word)

    plain = seen(with_vae(tiny, tmp_path / "nothing", name), name)
    makers = seen(with_vae(tiny, tmp_path / "a", name), name)
    folder = seen(with_vae(tiny, tmp_path / "b", name), name)

    assert plain[1] == makers[1] == folder[1]
    assert [each.size for each in makers[0]] == [(64, 64)] * 2
    assert [each.tobytes() for each in makers[0]] == [each.tobytes() for each in folder[0]]
    assert {each.tobytes() for each in makers[0]}.isdisjoint(each.tobytes() for each in plain[0])


def test_a_preview_is_what_autoencoder_tiny_makes_of_the_same_latents(tiny: Path, tmp_path: Path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae_approx" / "taesd")
    bench = with_vae(tiny, tmp_path, "sd15")
    order, pipeline = bench.engine._loaded["sd15"]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    with torch.no_grad():
        by_hand = pipeline.image_processor.postprocess(vae.decode(latents).sample, output_type="pil")[0]
        decode = bench.engine._tiny_decoding.instead_of(calls_of(Family.SD15).decode, order)
        made = decode(pipeline, latents, bench.spec("sd15"))

    assert made.tobytes() == by_hand.tobytes()
    bench.engine.unload("sd15")
    assert bench.engine._tiny_decoding._loaded == {}


def test_which_latents_one_is_for_its_name_says_or_a_sidecar(tmp_path: Path):
    folder = tmp_path / "models" / "vae_approx"
    for name in ("taesd_decoder", "taesdxl_decoder", "mine"):
        write(folder / f"{name}.safetensors", in_makers_names(tiny_vae()))
    write(folder / "taesd_encoder.safetensors", {"0.weight": torch.zeros(8, 3, 3, 3)})
    (folder / "mine.toml").write_text('latents = "sdxl"\n')

    found = find_tiny_vaes([tmp_path])

    assert found.refused == ()
    assert {each.place.name: each.latents for each in found.files} == {
        "taesd_decoder": Latents.SD15,
        "taesdxl_decoder": Latents.SDXL,
        "mine": Latents.SDXL,
    }
    (fits,) = (found.fitting(Family.SDXL),)
    assert fits is not None
    assert fits.place.name == "mine"
    assert found.fitting(Family.FLUX1) is None


@pytest.mark.parametrize(
    ("name", "tensors", "why"),
    [
        ("taesd", {"weight": torch.zeros(1)}, "no tiny autoencoder"),
        ("taesd3", in_makers_names(tiny_vae()), "decodes 4 channels; latents of sd3 have 16"),
        ("mystery", in_makers_names(tiny_vae()), "for which latents it is"),
        ("taesd", {"1.weight": torch.zeros(1000, 4, 3, 3)}, "no tiny autoencoder"),
    ],
)
def test_what_is_none_or_does_not_go_together_is_refused(tmp_path: Path, name: str, tensors: dict[str, torch.Tensor], why: str):
    write(tmp_path / "vae_approx" / f"{name}.safetensors", tensors)

    found = find_tiny_vaes([tmp_path])

    assert found.files == ()
    assert why in found.refused[0].reason


def test_pickles_disguised_or_not_are_refused(tmp_path: Path):
    (tmp_path / "vae_approx").mkdir()
    (tmp_path / "vae_approx" / "taesd_decoder.pth").write_bytes(b"x")
    (tmp_path / "vae_approx" / "taesd_decoder.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 90)

    reasons = sorted(refusal.reason for refusal in find_tiny_vaes([tmp_path]).refused)

    assert "pickles are never loaded" in reasons[0]
    assert "a pickle" in reasons[1]
