"""Previews by a tiny autoencoder, where one for a model's latents is there. Final pictures never come this way."""

from typing import Any

import diffusers
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from node.engines.base import LoadOrder, RunSpec
from node.engines.previews import Decode
from node.extras import Place
from node.safetensors_header import CheckpointRefused
from node.tiny_vaes import decoder_of, inspect_tiny_vae


class TinyDecoding:
    """The tiny autoencoders of an engine, each read when the first preview is due."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: dict[str, Any] = {}
        """By model."""

    def instead_of(self, decode: Decode, order: LoadOrder) -> Decode:
        """`decode` by the model's tiny autoencoder; itself where there is none."""
        place = order.tiny_vae
        if place is None:
            return decode

        def tiny(pipeline: Any, latents: Tensor, spec: RunSpec) -> Image.Image:
            if order.model not in self._loaded:
                self._loaded[order.model] = _load(place, getattr(torch, order.dtype)).to(self._device)
            return decode(_WithVae(pipeline, self._loaded[order.model]), latents, spec)

        return tiny

    def forget(self, model: str) -> None:
        """Give its memory back."""
        self._loaded.pop(model, None)


class _WithVae:
    """A pipeline as a family's code for decoding sees it, with another autoencoder."""

    def __init__(self, pipeline: Any, vae: Any) -> None:
        self._pipeline = pipeline
        self.vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


def _load(place: Place, dtype: torch.dtype) -> Any:
    """An AutoencoderTiny with its decoder alone. Raises: CheckpointRefused; OSError."""
    file = inspect_tiny_vae(place)
    if file is None:
        raise CheckpointRefused(place.path, "an encoder alone")
    widths = (file.width,) * 4
    with torch.device("meta"):
        vae = diffusers.AutoencoderTiny(
            latent_channels=file.channels, encoder_block_out_channels=widths, decoder_block_out_channels=widths
        )
    vae.encoder = nn.Identity()
    tensors = {name: tensor.to(dtype) for name, tensor in decoder_of(load_file(place.path)).items()}
    try:
        vae.decoder.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointRefused(place.path, "its tensors are not those of TAESD's decoder") from error
    return vae.eval()
