"""`aquatint bench gpu` without a GPU: the same code on few channels, and the full architectures by their weights' number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from node.benches.gpu import JOBS, measure
from node.benches.random_checkpoints import Build, Scale, pipeline_of, write
from node.models import find_models

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def without_weights(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        # UNet, CLIP-L, OpenCLIP bigG and autoencoder, as in stabilityai/stable-diffusion-xl-base-1.0.
        (Build.SDXL, {"unet": 2567, "text_encoder": 123, "text_encoder_2": 695, "vae": 84}),
        # The transformer, Qwen3-4B without its head, and Flux's autoencoder, as in Tongyi-MAI/Z-Image-Turbo.
        (Build.Z_IMAGE, {"transformer": 6155, "text_encoder": 4022, "vae": 84}),
    ],
)
def test_full_size_is_the_size_of_the_published_models(build: Build, millions: dict[str, int]):
    pipeline = pipeline_of(build, Scale.FULL, without_weights)
    counted = {name: sum(each.numel() for each in getattr(pipeline, name).parameters()) for name in millions}

    assert {name: round(count / 1e6) for name, count in counted.items()} == millions


@pytest.mark.parametrize("build", Build)
def test_a_node_takes_what_is_built(build: Build, tmp_path: Path):
    write(build, Scale.TINY, tmp_path / build, dtype="bfloat16", device="cpu")
    (model,) = find_models([tmp_path])

    assert (model.name, model.profile.name) == (build, {"sdxl": "sdxl", "z-image": "z-image-turbo"}[build])
    assert all(job.steps >= model.profile.min_steps for job in JOBS[build])


def test_every_figure_is_measured(tmp_path: Path):
    (figures,) = measure(Build.Z_IMAGE, Scale.TINY, tmp_path, count=2, clients=2, device="cpu", threads=1, compiled=True)

    assert figures["overhead_ratio"] == pytest.approx(figures["node_s"] / figures["bare_s"], rel=0.01)
    assert set(figures["batch_curve_s_per_image"]) == {1, 2, 4, 8}
    assert figures["cancel_s"] > 0
    assert figures["peak_bytes"] > figures["estimated_weights_bytes"] > 1_000_000
    assert figures["compiled"]["state"] == "off: not worth its minutes on cpu"
    assert figures["published"]
