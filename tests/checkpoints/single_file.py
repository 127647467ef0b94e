"""Writes a tiny pipeline as the one file people download: Stability's own tensor names, for SD 1.5 and SDXL.

The names are those diffusers' converters read (diffusers/loaders/single_file_utils.py), the other way round.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
SHORTCUT = (("conv_shortcut", "nin_shortcut"),)


def renamed(tensors: Tensors, old: str, new: str, parts: Iterable[tuple[str, str]] = ()) -> Tensors:
    """Those whose names begin with `old`, which becomes `new`; `parts` are replaced in the rest."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(old):
            rest = name.removeprefix(old)
            for before, after in parts:
                rest = rest.replace(before, after)
            found[new + rest] = tensor
    return found


def unet_tensors(unet: Any) -> Tensors:
    """A UNet2DConditionModel under `model.diffusion_model.`."""
    tensors, to, found = unet.state_dict(), "model.diffusion_model.", Tensors()
    for old, new in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ):
        found |= renamed(tensors, f"{old}.", f"{to}{new}.")
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            found |= renamed(tensors, f"down_blocks.{i}.resnets.{j}.", f"{to}input_blocks.{number}.0.", RESNET)
            found |= renamed(tensors, f"down_blocks.{i}.attentions.{j}.", f"{to}input_blocks.{number}.1.")
            number += 1
        if block.downsamplers:
            found |= renamed(tensors, f"down_blocks.{i}.downsamplers.0.conv.", f"{to}input_blocks.{number}.0.op.")
            number += 1
    for old, new, parts in (("resnets.0", 0, RESNET), ("attentions.0", 1, ()), ("resnets.1", 2, RESNET)):
        found |= renamed(tensors, f"mid_block.{old}.", f"{to}middle_block.{new}.", parts)
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            found |= renamed(tensors, f"up_blocks.{i}.resnets.{j}.", f"{to}output_blocks.{number}.0.", RESNET)
            found |= renamed(tensors, f"up_blocks.{i}.attentions.{j}.", f"{to}output_blocks.{number}.1.")
            if block.upsamplers and j == len(block.resnets) - 1:
                place = 2 if hasattr(block, "attentions") else 1
                found |= renamed(tensors, f"up_blocks.{i}.upsamplers.0.", f"{to}output_blocks.{number}.{place}.")
            number += 1
    assert len(found) == len(tensors)
    return found


def vae_tensors(vae: Any) -> Tensors:
    """An AutoencoderKL under `first_stage_model.`."""
    tensors, to, found = vae.state_dict(), "first_stage_model.", Tensors()
    levels = len(vae.decoder.up_blocks)
    for name in ("quant_conv.", "post_quant_conv."):
        found |= renamed(tensors, name, to + name)
    for half in ("encoder", "decoder"):
        for old, new in (("conv_in", "conv_in"), ("conv_out", "conv_out"), ("conv_norm_out", "norm_out")):
            found |= renamed(tensors, f"{half}.{old}.", f"{to}{half}.{new}.")
        for index in (0, 1):
            new = f"{to}{half}.mid.block_{index + 1}."
            found |= renamed(tensors, f"{half}.mid_block.resnets.{index}.", new, SHORTCUT)
        for old, new in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            some = renamed(tensors, f"{half}.mid_block.attentions.0.{old}.", f"{to}{half}.mid.attn_1.{new}.")
            # Attention was written as 1x1 convolutions there.
            found |= {name: each[..., None, None] if each.ndim == 2 else each for name, each in some.items()}
        for i in range(levels):
            old, new = (f"{half}.down_blocks.{i}.", f"{to}{half}.down.{i}.")
            if half == "decoder":
                old, new = f"{half}.up_blocks.{i}.", f"{to}{half}.up.{levels - 1 - i}."
            for j in range(3):
                found |= renamed(tensors, f"{old}resnets.{j}.", f"{new}block.{j}.", SHORTCUT)
            found |= renamed(tensors, f"{old}downsamplers.0.", f"{new}downsample.")
            found |= renamed(tensors, f"{old}upsamplers.0.", f"{new}upsample.")
    assert len(found) == len(tensors)
    return found


def text_tensors(encoder: Any) -> Tensors:
    """With the prefix `text_model.`, which transformers 5 leaves out of CLIPTextModel."""
    kept = ("text_model.", "text_projection")
    return {n if n.startswith(kept) else f"text_model.{n}": each for n, each in encoder.state_dict().items()}


def open_clip_tensors(encoder: Any, to: str) -> Tensors:
    """SDXL's second encoder, which came from OpenCLIP: one matrix for query, key and value."""
    import torch

    tensors = text_tensors(encoder)
    found = {
        f"{to}text_projection": tensors["text_projection.weight"].T,
        f"{to}positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        f"{to}token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
    } | renamed(tensors, "text_model.final_layer_norm.", f"{to}ln_final.")
    names = (
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    )
    for i in range(encoder.config.num_hidden_layers):
        old, new = f"text_model.encoder.layers.{i}.", f"{to}transformer.resblocks.{i}."
        for before, after in names:
            found |= renamed(tensors, f"{old}{before}.", f"{new}{after}.")
        for kind in ("weight", "bias"):
            joined = [tensors[f"{old}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(joined)
    return found


def write(folder: Path, file: Path) -> None:
    """A diffusers folder as one file."""
    import diffusers
    from safetensors.torch import save_file

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    second = getattr(pipeline, "text_encoder_2", None)
    first = "cond_stage_model.transformer." if second is None else "conditioner.embedders.0.transformer."
    tensors |= {first + name: each for name, each in text_tensors(pipeline.text_encoder).items()}
    if second is not None:
        tensors |= open_clip_tensors(second, "conditioner.embedders.1.model.")
    save_file({name: each.contiguous() for name, each in tensors.items()}, file)
