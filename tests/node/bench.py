"""An engine with tiny models loaded, and what tests of it compare pictures by."""

from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from common.images_api import OutputFormat, Size
from node.engines.base import Made, OnPreview, RunSpec
from node.masks import Canvas
from node.models import Models


class Bench:
    """One engine with every tiny model loaded."""

    def __init__(self, models: Models) -> None:
        from node.engines.diffusers_engine import DiffusersEngine

        torch.set_num_threads(1)
        self.engine = DiffusersEngine("cpu")
        self.models = models
        for model in models:
            self.engine.load(model.load_order("cpu", "float32"))

    def spec(self, name: str, **changes: Any) -> RunSpec:
        model = self.models.by_name[name]
        spec = RunSpec(
            model=name,
            prompt="a large red circle",
            negative_prompt="",
            seeds=(41,),
            drawn=Size(64, 64),
            size=Size(64, 64),
            steps=3 if model.profile.takes_guidance else 4,
            guidance=model.profile.default_guidance,
            sampler=model.profile.sampler,
            timestep_spacing=model.profile.timestep_spacing,
            output_format=OutputFormat.PNG,
            output_compression=None,
            quality="medium",
            embed_parameters=False,
        )
        return replace(spec, **changes)

    def make(self, name: str, canvas: Canvas | None = None, on_preview: OnPreview | None = None, **changes: Any) -> Made:
        return self.engine.generate(
            self.spec(name, **changes), canvas, lambda step, steps: None, on_preview or (lambda index, image: None)
        )


def pixels(made: Made) -> list[bytes]:
    return [image.tobytes() for image in made.images]


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")
