"""Pictures in the place of words: an IP-Adapter on a UNet for the length of a run, and off it behind.

Its layers are put beside those that read the prompt by exchanging the attention processors, and the plain ones are put
back as the very objects they were, so that the next run takes the path it always took.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from node.engines.base import EngineFailed, LoadOrder, Method, RunSpec
from node.extras import Place
from node.image_prompts import inspect_adapter, inspect_encoder
from node.masks import Canvas
from node.safetensors_header import CheckpointRefused

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures CLIP was trained on, by channel (openai/CLIP, `clip.py`)."""


class ImagePrompting:
    """The adapter and the encoder of one pipeline, read when the first run wants them."""

    def __init__(self, order: LoadOrder, pipeline: Any, device: torch.device) -> None:
        self._order = order
        self._pipeline = pipeline
        self._device = device
        self._encoder: Any = None
        self._adapter: dict[str, dict[str, Tensor]] | None = None

    @contextmanager
    def prompted(self, spec: RunSpec, canvas: Canvas | None) -> Iterator[dict[str, Any]]:
        """Have the adapter in effect for the length of the block, where the method is of that kind.

        Gives the arguments of the call. Raises: EngineFailed, CheckpointRefused, OSError.
        """
        if spec.method is not Method.IMAGE_PROMPT:
            yield {}
            return
        if canvas is None or not canvas.sources or spec.image_prompt is None or len(self._order.image_prompt) != 2:
            raise EngineFailed(f"The method {spec.method} needs a picture, an adapter and an encoder.")
        self._have(*self._order.image_prompt)
        unet = self._pipeline.unet
        plain, kind = dict(unet.attn_processors), unet.config.encoder_hid_dim_type
        try:
            self._put_on(unet, spec.image_prompt.scale)
            yield {"ip_adapter_image_embeds": [self._embedded(canvas.sources[0], guided=spec.guidance > 1)]}
        finally:
            unet.set_attn_processor(plain)
            unet.encoder_hid_proj = None
            unet.config.encoder_hid_dim_type = kind

    def _have(self, adapter: Place, encoder: Place) -> None:
        dtype = getattr(torch, self._order.dtype)
        if self._encoder is None:
            self._encoder = _encoder(encoder, dtype).to(self._device)
        if self._adapter is None:
            inspect_adapter(adapter)
            parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
            for name, tensor in load_file(adapter.path).items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor.to(dtype)
            self._adapter = parts

    def _put_on(self, unet: Any, scale: float) -> None:
        try:
            unet._load_ip_adapter_weights([self._adapter])
        except Exception as error:
            # The library looks for layers by number, and fails in as many ways as there are other models.
            raise EngineFailed(f"The image adapter does not fit the model {self._order.model!r}.") from error
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [scale]

    def _embedded(self, picture: Image.Image, *, guided: bool) -> Tensor:
        """(1, 1, width), or (2, 1, width) with zeros first, which is what is guided away from."""
        pixels = prepared(picture, self._encoder.config.image_size).to(self._device, self._encoder.dtype)
        embedding: Tensor = self._encoder(pixels).image_embeds[None]
        return torch.cat((torch.zeros_like(embedding), embedding)) if guided else embedding


def prepared(picture: Image.Image, side_px: int) -> Tensor:
    """(1, 3, side, side): its middle square as CLIP was shown pictures."""
    square = ImageOps.fit(picture, (side_px, side_px), Image.Resampling.BICUBIC)
    values = (np.asarray(square, np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


def _encoder(place: Place, dtype: torch.dtype) -> Any:
    """Raises: CheckpointRefused: some of its tensors are missing, or others."""
    file = inspect_encoder(place)
    config = CLIPVisionConfig(
        hidden_size=file.width,
        intermediate_size=file.inner,
        projection_dim=file.gives,
        num_hidden_layers=file.layers,
        num_attention_heads=file.heads,
        image_size=file.image_px,
        patch_size=file.patch_px,
        hidden_act=file.activation,
    )
    made, told = CLIPVisionModelWithProjection.from_pretrained(
        None, config=config, state_dict=load_file(place.path), dtype=dtype, output_loading_info=True
    )
    if told["missing_keys"] or told["mismatched_keys"]:
        raise CheckpointRefused(place.path, f"{len(told['missing_keys'])} tensors of an image encoder are not in it")
    return made.eval().requires_grad_(False)
