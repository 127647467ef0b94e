"""Attention as it is cheapest to train on a CPU."""

from typing import Any

import torch
from torch import Tensor


class CpuAttention:
    """An attention processor of diffusers: the plain products, and the softmax in the products' own number format.

    With heads as narrow as these, torch's fused attention spends half of a training step in its backward pass, and
    diffusers' plain processor lets autocast carry the largest tensors of the net, the attention maps, to fp32 and back.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """(B, positions, channels) and (B, tokens, width) -> (B, positions, channels). No mask is ever given here."""
        assert attention_mask is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        with torch.autocast("cpu", enabled=False):
            weights = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=attn.scale).softmax(-1)
            mixed = torch.bmm(weights, value)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(mixed)))
        return projected
