"""Writes tiny random models that stable-diffusion.cpp runs on a CPU: Ovis-shaped (28 MB) and Klein-shaped (50 MB).

`python -m tests.checkpoints.tiny_sdcpp FOLDER` writes `ovis` and `klein` as safetensors, and `ovis-q8` and `ovis-q4` as
GGUF. sd.cpp reads depth, width, heads (of 128) and text width of these two families from the file, which is why they can
be tiny; UNets, CLIP, T5, Z-Image and Qwen-Image have fixed sizes in it. The vocabulary is fixed too, and is most of the
bytes.
"""

import sys
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HEAD = 128
WIDTH = 128
TEXT_WIDTH = 64
VOCABULARY = 151_936
"""Qwen's."""
Tensors = dict[str, NDArray[np.float16] | NDArray[np.float32]]


class Weights:
    """Collects tensors by name, the same numbers each time."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self._random = np.random.default_rng(7)

    def random(self, name: str, *shape: int, scale: float | None = None) -> None:
        """shape: (out, in, ...). scale: standard deviation; None keeps the size of what goes through."""
        spread = prod(shape[1:]) ** -0.5 if scale is None else scale
        self.tensors[name] = (self._random.standard_normal(shape, dtype=np.float32) * spread).astype(np.float16)

    def ones(self, name: str, size: int) -> None:
        """A norm's scale."""
        self.tensors[name] = np.ones(size, np.float32)

    def linear(self, name: str, size_in: int, size_out: int, *, bias: bool) -> None:
        """A linear layer."""
        self.random(f"{name}.weight", size_out, size_in)
        if bias:
            self.tensors[f"{name}.bias"] = np.zeros(size_out, np.float32)

    def convolution(self, name: str, size_in: int, size_out: int, *, kernel: int = 3, bias: bool = True) -> None:
        """A 2D convolution."""
        self.random(f"{name}.weight", size_out, size_in, kernel, kernel)
        if bias:
            self.tensors[f"{name}.bias"] = np.zeros(size_out, np.float32)


def ovis() -> Tensors:
    """Ovis-Image: a Flux-like transformer of one double and one single block, with gated MLPs."""
    made = Weights()
    made.linear("img_in", 64, WIDTH, bias=True)
    made.linear("txt_in", TEXT_WIDTH, WIDTH, bias=True)
    made.ones("txt_norm.scale", TEXT_WIDTH)
    made.linear("time_in.in_layer", 256, WIDTH, bias=True)
    made.linear("time_in.out_layer", WIDTH, WIDTH, bias=True)
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}_"
        made.linear(f"{block}mod.lin", WIDTH, 6 * WIDTH, bias=True)
        _attention(made, f"{block}attn", bias=True)
        made.linear(f"{block}mlp.gate_proj", WIDTH, 4 * WIDTH, bias=True)
        made.linear(f"{block}mlp.up_proj", WIDTH, 4 * WIDTH, bias=True)
        made.linear(f"{block}mlp.down_proj", 4 * WIDTH, WIDTH, bias=True)
    _single_block(made, mlp=8, bias=True)
    made.linear("single_blocks.0.modulation.lin", WIDTH, 3 * WIDTH, bias=True)
    _final_layer(made, channels=64, bias=True)
    return made.tensors


def klein() -> Tensors:
    """Flux.2 Klein: the same with shared modulation, twice the channels and no biases. Its text is three layers wide."""
    made = Weights()
    made.linear("img_in", 128, WIDTH, bias=False)
    made.linear("txt_in", 3 * TEXT_WIDTH, WIDTH, bias=False)
    made.linear("time_in.in_layer", 256, WIDTH, bias=False)
    made.linear("time_in.out_layer", WIDTH, WIDTH, bias=False)
    for name, parts in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6)):
        made.linear(f"{name}.lin", WIDTH, parts * WIDTH, bias=False)
    made.linear("single_stream_modulation.lin", WIDTH, 3 * WIDTH, bias=False)
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}_"
        _attention(made, f"{block}attn", bias=False)
        made.linear(f"{block}mlp.0", WIDTH, 6 * WIDTH, bias=False)
        made.linear(f"{block}mlp.2", 3 * WIDTH, WIDTH, bias=False)
    _single_block(made, mlp=6, bias=False)
    _final_layer(made, channels=128, bias=False)
    return made.tensors


def _attention(made: Weights, name: str, *, bias: bool) -> None:
    made.linear(f"{name}.qkv", WIDTH, 3 * WIDTH, bias=bias)
    made.linear(f"{name}.proj", WIDTH, WIDTH, bias=bias)
    made.ones(f"{name}.norm.query_norm.scale", HEAD)
    made.ones(f"{name}.norm.key_norm.scale", HEAD)


def _single_block(made: Weights, *, mlp: int, bias: bool) -> None:
    """mlp: width of its gated MLP before the gate, in widths of the block."""
    block = "single_blocks.0."
    made.linear(f"{block}linear1", WIDTH, (3 + mlp) * WIDTH, bias=bias)
    made.linear(f"{block}linear2", (1 + mlp // 2) * WIDTH, WIDTH, bias=bias)
    made.ones(f"{block}norm.query_norm.scale", HEAD)
    made.ones(f"{block}norm.key_norm.scale", HEAD)


def _final_layer(made: Weights, *, channels: int, bias: bool) -> None:
    made.linear("final_layer.linear", WIDTH, channels, bias=bias)
    made.linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH, bias=bias)


def qwen3(layers: int) -> Tensors:
    """A Qwen3 text encoder. sd.cpp takes 28 layers for the size with 16 heads, any other number for one with 32."""
    made = Weights()
    made.random("model.embed_tokens.weight", VOCABULARY, TEXT_WIDTH, scale=1.0)
    made.ones("model.norm.weight", TEXT_WIDTH)
    queries, keys = (16 if layers == 28 else 32) * HEAD, 8 * HEAD
    for index in range(layers):
        layer = f"model.layers.{index}."
        for name, size_in, size_out in (
            ("self_attn.q_proj", TEXT_WIDTH, queries),
            ("self_attn.k_proj", TEXT_WIDTH, keys),
            ("self_attn.v_proj", TEXT_WIDTH, keys),
            ("self_attn.o_proj", queries, TEXT_WIDTH),
            ("mlp.gate_proj", TEXT_WIDTH, TEXT_WIDTH),
            ("mlp.up_proj", TEXT_WIDTH, TEXT_WIDTH),
            ("mlp.down_proj", TEXT_WIDTH, TEXT_WIDTH),
        ):
            made.linear(layer + name, size_in, size_out, bias=False)
        for name, size in (("input_layernorm", TEXT_WIDTH), ("post_attention_layernorm", TEXT_WIDTH)):
            made.ones(f"{layer}{name}.weight", size)
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            made.ones(f"{layer}{name}.weight", HEAD)
    return made.tensors


def tiny_autoencoder(channels: int, *, pooled: bool) -> Tensors:
    """A TAE of the real size (2.4 M weights). pooled: as for Flux.2, whose first and last blocks mix the whole picture."""
    made, width = Weights(), 64

    def block(name: str, *, pool: bool = False) -> None:
        for part in (0, 2, 4):
            made.convolution(f"{name}.conv.{part}", width, width)
        if pool:
            made.convolution(f"{name}.pool.0", width, 4 * width, kernel=1, bias=False)
            made.ones(f"{name}.pool.1.weight", 4 * width)
            made.tensors[f"{name}.pool.1.bias"] = np.zeros(4 * width, np.float32)
            made.convolution(f"{name}.pool.3", 4 * width, width, kernel=1, bias=False)

    made.convolution("decoder.layers.0", channels, width)
    place = 2
    for stage in range(3):
        for _ in range(3):
            block(f"decoder.layers.{place}", pool=pooled and stage == 0)
            place += 1
        made.convolution(f"decoder.layers.{place + 1}", width, width, bias=False)
        place += 2
    block(f"decoder.layers.{place}")
    made.convolution(f"decoder.layers.{place + 1}", width, 3)

    made.convolution("encoder.layers.0", 3, width)
    block("encoder.layers.1")
    place = 2
    for stage in range(3):
        made.convolution(f"encoder.layers.{place}", width, width, bias=False)
        for offset in range(1, 4):
            block(f"encoder.layers.{place + offset}", pool=pooled and stage == 2)
        place += 4
    made.convolution(f"encoder.layers.{place}", width, channels)
    return made.tensors


SIDECAR = '[components]\nllm = "parts/{kind}-llm.safetensors"\ntae = "parts/{kind}-tae.safetensors"\n'
QUANTISED = {"q8": 8, "q4": 2}
"""Ending of a name -> ggml's number of Q8_0 and Q4_0."""


def write(folder: Path) -> None:
    """Each kind as `KIND.safetensors` with its sidecar; what they need beside it below `parts`."""
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for kind, transformer, llm, tae in (
        ("ovis", ovis(), qwen3(1), tiny_autoencoder(16, pooled=False)),
        ("klein", klein(), qwen3(28), tiny_autoencoder(32, pooled=True)),
    ):
        save_file(transformer, folder / f"{kind}.safetensors")
        save_file(llm, parts / f"{kind}-llm.safetensors")
        save_file(tae, parts / f"{kind}-tae.safetensors")
        (folder / f"{kind}.toml").write_text(SIDECAR.format(kind=kind))


def quantise(folder: Path) -> None:
    """`ovis.safetensors` as GGUF, by sd.cpp's own converter."""
    from stable_diffusion_cpp import stable_diffusion_cpp as sd

    for ending, number in QUANTISED.items():
        target = folder / f"ovis-{ending}.gguf"
        if not sd.convert(str(folder / "ovis.safetensors").encode(), b"", str(target).encode(), number, b"", False):
            raise RuntimeError(f"{target} was not written")
        (folder / f"ovis-{ending}.toml").write_text(SIDECAR.format(kind="ovis"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    quantise(Path(sys.argv[1]))
