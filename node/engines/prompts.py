"""Prompts as the arguments of a pipeline call: read one run at a time, laid side by side for a pass of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from node.engines.base import LoadOrder, RunSpec
from node.engines.clip_text import clip_text
from node.engines.families import calls_of
from node.masks import Canvas


@dataclass(frozen=True, slots=True)
class Prompt:
    """One run's prompts, read by the model's text encoders."""

    arguments: dict[str, Any]
    """Tensors of one row, lists with one tensor a prompt, or None where a pipeline wants that said."""
    tokens: int
    truncated: bool
    masks: Mapping[str, str] = field(default_factory=dict)
    """See node.engines.families.base.FamilyCalls.masks."""

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What two prompts must have in common to be laid side by side; lists may hold tensors of any length."""
        return tuple((name, self._shape_of(name)) for name in sorted(self.arguments.keys() - set(self.masks.values())))

    def _shape_of(self, name: str) -> tuple[int, ...]:
        value = self.arguments[name]
        if not torch.is_tensor(value):
            return ()
        return tuple(value.shape[2:] if name in self.masks else value.shape[1:])


def read_prompt(order: LoadOrder, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> Prompt:
    """Encode the prompts of a run. canvas: for encoders that look at the sources as well."""
    if (read := clip_text(pipeline, order.profile, spec)) is not None:
        return Prompt(dict(read.arguments), read.tokens, read.truncated)
    calls = calls_of(order.checkpoint.family)
    embeddings = calls.encode(pipeline, spec, canvas)
    return Prompt(embeddings, *_count_tokens(pipeline, order, spec.prompt), calls.masks)


def side_by_side(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The arguments of one call for prompts of one shape, a row each."""
    arguments = {}
    for name in prompts[0].arguments:
        values = [prompt.arguments[name] for prompt in prompts]
        if name in prompts[0].masks and len({len(value[0]) for value in values}) > 1:
            arguments[name], arguments[prompts[0].masks[name]] = _padded(values)
        elif name not in arguments:
            arguments[name] = _rows(values)
    return arguments


def _padded(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, tokens, width) of different length as (rows, most tokens, width), and 1 for each that is no padding."""
    rows = torch.nn.utils.rnn.pad_sequence([value[0] for value in values], batch_first=True)
    lengths = torch.tensor([len(value[0]) for value in values], device=rows.device)
    return rows, (torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]).long()


def _rows(values: Sequence[Any]) -> Any:
    if torch.is_tensor(values[0]):
        return torch.cat(list(values))
    return None if values[0] is None else [each for value in values for each in value]


def _count_tokens(pipeline: Any, order: LoadOrder, prompt: str) -> tuple[int, bool]:
    """Tokens of the prompt, and whether the encoder read fewer."""
    calls = calls_of(order.checkpoint.family)
    tokens = len(getattr(pipeline, calls.tokenizer)(prompt, add_special_tokens=False).input_ids)
    read = calls.read_tokens(pipeline, prompt, tokens)
    return tokens, read > order.profile.max_prompt_tokens
