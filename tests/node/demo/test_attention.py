"""The cheap attention is attention."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from node.demo import architecture
from node.demo.attention import CpuAttention


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_cheap_attention_gives_what_diffusers_own_gives(precision: torch.dtype):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = architecture.unet().eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    latents, timesteps, text = torch.randn(2, 4, 16, 16), torch.tensor([5, 900]), torch.randn(2, 77, architecture.TEXT_WIDTH)
    answers = []
    for attention in (AttnProcessor2_0(), CpuAttention()):
        unet.set_attn_processor(attention)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            answers.append(unet(latents, timesteps, text).sample.float())

    stock, cheap = answers
    assert stock.std() > 0.1
    assert (stock - cheap).abs().max() < (1e-5 if precision is torch.float32 else 0.05) * stock.abs().max()
