"""Prompts for the CLIP families (SD 1.5, SDXL): weights on words, and any length, by windows of 77 tokens.

Each window is read by itself, as the encoder was trained, and all are laid end to end for the denoiser to attend to. A
prompt of one window without weights gives the bits of the stock pipeline's `encode_prompt`, which the tests hold.
Weights after AUTOMATIC1111's web UI (`EmphasisOriginal` in modules/sd_emphasis.py, windows in modules/sd_hijack_clip.py):
the vectors of a window are multiplied, then all of them scaled so that their mean is what it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from node.engines.base import RunSpec
from node.pipeline_classes import Family
from node.profile import Profile
from node.prompt_weights import pieces_of

MAX_WINDOWS = 32
"""Attention costs by the token: 2,400 of them are far beyond any prompt that means something to CLIP."""
LOOK_BACK_TOKENS = 20
"""A window that ends within a phrase ends at its last comma instead, when that is at most so far back."""
NO_MEAN = 1e-5
"""Numbers whose mean is below this share of their spread have none to restore: the quotient would be noise, or infinite."""

Window = tuple[list[int], list[float]]
"""Tokens without marks of beginning and end, and the weight of each."""


@dataclass(frozen=True, slots=True)
class ClipText:
    """A prompt as the arguments of a pipeline call, and how it was read."""

    arguments: dict[str, Tensor]
    tokens: int
    truncated: bool


def clip_text(pipeline: Any, profile: Profile, spec: RunSpec) -> ClipText | None:
    """Encode the prompts of a run; None where the model's profile does not read weights.

    The embeddings are (1, 77 x windows, width); of two prompts the shorter gets empty windows, for they are guided
    together. SDXL's pooled embedding is that of the first window.
    """
    if not profile.prompt_weights:
        return None
    two = profile.family is Family.SDXL
    encoders = [_Encoder(pipeline.tokenizer, pipeline.text_encoder, hidden=two)]
    if two:
        encoders.append(_Encoder(pipeline.tokenizer_2, pipeline.text_encoder_2, hidden=True))
    # diffusers guides above 1 only.
    guided = spec.guidance > 1
    zeros = two and not spec.negative_prompt and pipeline.config.force_zeros_for_empty_prompt
    prompts = [spec.prompt, spec.negative_prompt] if guided and not zeros else [spec.prompt]
    windows = [[each.windows(prompt) for each in encoders] for prompt in prompts]
    tokens = sum(len(ids) for ids, _ in windows[0][0])
    truncated = any(len(read) > MAX_WINDOWS for prompt in windows for read in prompt)
    length = min(MAX_WINDOWS, max(len(read) for prompt in windows for read in prompt))
    encoded = [[e.encode(read, length) for e, read in zip(encoders, prompt, strict=True)] for prompt in windows]
    embeddings = [torch.cat([each.embeddings for each in prompt], dim=-1) for prompt in encoded]
    pooled = [prompt[-1].pooled for prompt in encoded]
    if guided and zeros:
        # SDXL was trained to take zeros, not the embedding of "", for "no negative prompt".
        embeddings.append(torch.zeros_like(embeddings[0]))
        pooled.append(None if pooled[0] is None else torch.zeros_like(pooled[0]))
    arguments = dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeddings, strict=False))
    if two:
        arguments |= {
            name: each
            for name, each in zip(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), pooled, strict=False)
            if each is not None
        }
    return ClipText(arguments, tokens, truncated)


@dataclass(frozen=True, slots=True)
class _Encoded:
    embeddings: Tensor
    """(1, 77 x windows, width)"""
    pooled: Tensor | None


class _Encoder:
    """One CLIP text encoder with its tokenizer. hidden: SDXL reads the last layer but one, without the final norm."""

    def __init__(self, tokenizer: Any, encoder: Any, *, hidden: bool) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._hidden = hidden
        self._room = tokenizer.model_max_length - 2

    def windows(self, prompt: str) -> list[Window]:
        """The prompt's tokens in windows; one empty window for an empty prompt."""
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces_of(prompt):
            read = self._tokenizer(piece.text, add_special_tokens=False).input_ids
            ids += read
            weights += [piece.weight] * len(read)
        (comma,) = self._tokenizer(",", add_special_tokens=False).input_ids[-1:]
        return in_windows(ids, weights, room=self._room, comma=comma)

    def encode(self, windows: Sequence[Window], length: int) -> _Encoded:
        """The first `length` windows, or all of them and empty ones behind."""
        padded: list[Window] = [*windows, *[([], [])] * length]
        read = [self._window(ids, weights) for ids, weights in padded[:length]]
        return _Encoded(torch.cat([each for each, _ in read], dim=1), read[0][1])

    def _window(self, ids: list[int], weights: list[float]) -> tuple[Tensor, Tensor | None]:
        room, tokenizer = self._room - len(ids), self._tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * room]
        device, dtype = self._encoder.device, self._encoder.dtype
        made = self._encoder(torch.tensor([row], device=device), output_hidden_states=self._hidden)
        embeddings = made.hidden_states[-2] if self._hidden else made[0]
        pooled = made[0] if self._hidden and made[0].ndim == 2 else None
        return weighted(embeddings, [1.0, *weights, 1.0, *[1.0] * room]).to(dtype), pooled


def in_windows(ids: Sequence[int], weights: Sequence[float], *, room: int, comma: int) -> list[Window]:
    """Tokens in windows of at most `room`, divided behind a comma where one is near the end of a window."""
    windows: list[Window] = []
    start = 0
    while len(ids) - start > room:
        end = start + room
        if ids[end - 1] != comma:
            commas = [at for at in range(max(start, end - LOOK_BACK_TOKENS), end) if ids[at] == comma]
            end = commas[-1] + 1 if commas else end
        windows.append((list(ids[start:end]), list(weights[start:end])))
        start = end
    return [*windows, (list(ids[start:]), list(weights[start:]))]


def weighted(embeddings: Tensor, weights: Sequence[float]) -> Tensor:
    """The embeddings (1, tokens, width) of one window with the weight of each token; the same object if all are 1."""
    if all(weight == 1.0 for weight in weights):
        return embeddings
    # In float32: the mean of 77 x 768 numbers around zero is beyond the precision of float16.
    plain = embeddings.float()
    strong = plain * torch.tensor(weights, device=embeddings.device)[None, :, None]
    mean = plain.mean()
    if min(mean.abs(), strong.mean().abs()) > NO_MEAN * plain.std():
        strong = strong * (mean / strong.mean())
    return strong.to(embeddings.dtype)
