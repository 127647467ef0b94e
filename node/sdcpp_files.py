"""What stable-diffusion.cpp runs: the family of a file by its tensors, and which other files it needs beside it.

sd.cpp tells families by the names of tensors too (`ModelLoader::get_sd_version`), more of them than are here: those that
need another input than a prompt and a picture are left out. It starts with whatever it is given, and a Flux file without
text encoders ends the process at the first picture, so what a family needs is asked for before it is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from node.diffusers_folder import check_inside
from node.gguf_header import MAGIC, read_gguf_header
from node.pipeline_classes import Family
from node.safetensors_header import CheckpointRefused, TensorEntry, read_header

Component = Literal["clip_l", "clip_g", "t5xxl", "llm", "llm_vision", "vae", "tae"]
"""Files beside the diffusion model: text encoders, the vision half of one, the autoencoder, a tiny and quick one."""
AUTOENCODERS: frozenset[Component] = frozenset({"vae", "tae"})
PREFIX = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class FamilyMarks:
    """How one family is known. Names are without PREFIX, which files have or have not."""

    family: Family
    present: tuple[str, ...]
    absent: tuple[str, ...]
    widths: Mapping[str, int]
    """Second dimensions of tensors: what tells a model from its inpainting and control variants."""
    needs: tuple[frozenset[Component], ...]
    """Of each set, one file must be there, unless the file itself holds what it stands for."""
    inside: Mapping[str, Component]
    """Tensors by which a file shows that it holds a component itself."""


def _one(*components: Component) -> frozenset[Component]:
    return frozenset(components)


_VAE_INSIDE: dict[str, Component] = {"first_stage_model.decoder.conv_in.weight": "vae"}
FAMILIES = (
    FamilyMarks(
        Family.FLUX2_KLEIN,
        present=("double_stream_modulation_img.lin.weight",),
        absent=("single_blocks.47.linear1.weight",),
        widths={"img_in.weight": 128},
        needs=(_one("llm"), AUTOENCODERS),
        inside={},
    ),
    FamilyMarks(
        Family.OVIS_IMAGE,
        present=("double_blocks.0.img_mlp.gate_proj.weight",),
        absent=(),
        widths={"img_in.weight": 64},
        needs=(_one("llm"), AUTOENCODERS),
        inside={},
    ),
    FamilyMarks(
        Family.FLUX1,
        present=("double_blocks.0.img_mod.lin.weight", "vector_in.in_layer.weight"),
        absent=("double_blocks.0.img_mlp.gate_proj.weight",),
        widths={"img_in.weight": 64},
        needs=(_one("clip_l"), _one("t5xxl"), AUTOENCODERS),
        inside={},
    ),
    FamilyMarks(
        Family.Z_IMAGE,
        present=("cap_embedder.0.weight", "noise_refiner.0.attention.q_norm.weight"),
        absent=(),
        widths={},
        needs=(_one("llm"), AUTOENCODERS),
        inside={},
    ),
    FamilyMarks(
        Family.QWEN_IMAGE,
        present=("transformer_blocks.0.img_mod.1.weight",),
        absent=(),
        widths={"img_in.weight": 64},
        needs=(_one("llm"), AUTOENCODERS),
        inside={},
    ),
    FamilyMarks(
        Family.SDXL,
        present=("input_blocks.0.0.weight", "label_emb.0.0.weight", "middle_block.1.norm.weight"),
        absent=(),
        widths={"input_blocks.0.0.weight": 4, "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": 2048},
        needs=(_one("clip_l"), _one("clip_g"), AUTOENCODERS),
        inside=_VAE_INSIDE
        | {
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": "clip_l",
            "conditioner.embedders.1.model.ln_final.weight": "clip_g",
        },
    ),
    FamilyMarks(
        Family.SD15,
        present=("input_blocks.0.0.weight", "middle_block.1.norm.weight"),
        absent=("label_emb.0.0.weight",),
        # SD 2 reads text of width 1024.
        widths={"input_blocks.0.0.weight": 4, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": 768},
        needs=(_one("clip_l"), AUTOENCODERS),
        inside=_VAE_INSIDE | {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "clip_l"},
    ),
)


@dataclass(frozen=True, slots=True)
class SdcppFiles:
    """A diffusion model and what belongs to it, every header checked."""

    family: Family
    whole: bool
    """Whether the file holds text encoders and autoencoder too."""
    guidance_embeds: bool
    """Whether the model reads guidance as a number (FLUX.1 [dev] does, [schnell] does not)."""
    text_width: int | None
    """What tells the sizes of FLUX.2 [klein] apart."""
    components: Mapping[Component, Path]
    tensors: tuple[TensorEntry, ...]
    """Of all the files."""


def check_files(path: Path, tensors: Mapping[str, TensorEntry], named: Mapping[Component, str], *, root: Path) -> SdcppFiles:
    """Tell the family of a file, and check the files that its sidecar names.

    named: paths relative to the file's folder. root: the models folder nothing may lead out of.
    Raises: CheckpointRefused: no family of sd.cpp's, a component is missing, or one of the files is not sound; OSError.
    """
    bare = {name.removeprefix(PREFIX): entry for name, entry in tensors.items()}
    marks = next((each for each in FAMILIES if _is_of(bare, each)), None)
    if marks is None:
        known = ", ".join(each.family.value for each in FAMILIES)
        raise CheckpointRefused(path, f"its tensors are not those of a family this node runs ({known})")
    inside = {component for name, component in marks.inside.items() if name in tensors}
    for choice in marks.needs:
        if not choice & (inside | named.keys()):
            wanted = " or ".join(sorted(choice))
            raise CheckpointRefused(
                path, f"sd.cpp needs the {wanted} of {marks.family.value}: name it in {path.stem}.toml under [components]"
            )
    components = {name: (path.parent / file).resolve() for name, file in named.items()}
    every = list(tensors.values())
    for component in components.values():
        check_inside(component, root)
        every += read_tensors(component).values()
    whole = bool(marks.inside) and inside == set(marks.inside.values())
    text_width = next(iter(bare["txt_in.weight"].shape[1:2]), None) if "txt_in.weight" in bare else None
    return SdcppFiles(marks.family, whole, "guidance_in.in_layer.weight" in bare, text_width, components, tuple(every))


def read_tensors(path: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a safetensors or GGUF file, told apart by content. Raises: CheckpointRefused: neither; OSError."""
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    return read_gguf_header(path).tensors if is_gguf else read_header(path)


def _is_of(bare: Mapping[str, TensorEntry], marks: FamilyMarks) -> bool:
    if not all(name in bare for name in marks.present) or any(name in bare for name in marks.absent):
        return False
    return all(name in bare and bare[name].shape[1:2] == (width,) for name, width in marks.widths.items())
