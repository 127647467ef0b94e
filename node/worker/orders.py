"""The orders a node gives its worker, as JSON and back.

node -> worker    load, unload, drop_loras,             each with the number of its call
                  generate, cancel, measure
                  together                              several of generate, made in common passes; with the number of a
                                                        `share`, between whose steps those of later orders of it may come
worker -> node    hello, alive                          with the device and the memory the process holds
                  step, preview, done, failed
                  `failed` with `leaving`: the run was cancelled by the end of the process, which comes now
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from common.images_api import Size
from node.checkpoints import inspect
from node.engine_names import EngineName
from node.engines.base import LoadOrder, RunSpec
from node.extras import Place
from node.masks import Canvas
from node.offload import Offload
from node.profile import Profile

ALIVE_EVERY_S = 2.0
"""How often a worker says that it lives and how much memory is free."""


class Memory(NamedTuple):
    """What a worker's process holds, in bytes."""

    main_bytes: int
    """Resident in main memory; 0 where the system has no /proc to ask."""
    device_bytes: int
    """Of tensors on a CUDA device."""


def _places(places: Iterable[Place]) -> list[dict[str, str]]:
    return [{"name": each.name, "path": str(each.path), "root": str(each.root)} for each in places]


def _read_places(values: list[dict[str, str]]) -> tuple[Place, ...]:
    return tuple(Place(each["name"], Path(each["path"]), Path(each["root"])) for each in values)


def load_to_json(order: LoadOrder) -> dict[str, Any]:
    """What the worker needs to find and check the checkpoint again."""
    return {
        "kind": "load",
        "model": order.model,
        "path": str(order.checkpoint.path),
        "root": str(order.checkpoint.root),
        "engine": order.checkpoint.engine.value,
        "profile": order.profile.model_dump(mode="json"),
        "dtype": order.dtype,
        "offload": order.offload.value,
        "loras": _places(order.loras),
        "controls": _places(order.controls),
        "upscalers": _places(order.upscalers),
        "image_prompt": _places(order.image_prompt),
        "tiny_vae": _places([] if order.tiny_vae is None else [order.tiny_vae]),
    }


def load_from_json(values: dict[str, Any]) -> LoadOrder:
    """The order, with its checkpoint inspected anew: files change between a scan and a load.

    Raises: CheckpointRefused; OSError.
    """
    checkpoint = inspect(Path(values["path"]), root=Path(values["root"]), engine=EngineName(values["engine"]))
    return LoadOrder(
        values["model"],
        checkpoint,
        Profile.model_validate(values["profile"]),
        values["dtype"],
        _read_places(values["loras"]),
        _read_places(values["controls"]),
        _read_places(values["upscalers"]),
        _read_places(values["image_prompt"]),
        next(iter(_read_places(values["tiny_vae"])), None),
        Offload(values["offload"]),
    )


def control_blobs(spec: RunSpec) -> list[bytes]:
    """The pictures that guide a run, RGB of `spec.size`. They are the last blobs of its order."""
    return [use.picture.tobytes() for use in spec.controls if use.picture is not None]


def with_control_pictures(spec: RunSpec, blobs: Sequence[bytes]) -> tuple[RunSpec, Sequence[bytes]]:
    """The spec with its pictures again, and the blobs before them."""
    count = len(blobs) - len(spec.controls)
    shape = (spec.size.width_px, spec.size.height_px)
    uses = zip(spec.controls, blobs[count:], strict=True)
    controls = tuple(replace(use, picture=Image.frombytes("RGB", shape, blob)) for use, blob in uses)
    return replace(spec, controls=controls), blobs[:count]


def together_to_json(members: Sequence[dict[str, Any]], batch: int, share: int | None) -> dict[str, Any]:
    """Several `generate` orders, none with an input, in passes of at most `batch` pictures. Each is answered by itself.

    share: one they may join step by step; None for whole passes.
    """
    return {"kind": "together", "batch": batch, "share": share, "members": list(members)}


def canvas_to_json(canvas: Canvas | None) -> dict[str, Any] | None:
    """What its blobs are: whether there is a mask, and the sizes of the sources. The first size is the spec's."""
    if canvas is None:
        return None
    sizes = [str(Size(*source.size)) for source in canvas.sources]
    return {"masked": canvas.repaint is not None, "sources": sizes}


def canvas_to_blobs(canvas: Canvas | None) -> list[bytes]:
    """The pixels of an input, as they are: RGB, then the mask if there is one, then RGB of each source."""
    if canvas is None:
        return []
    pictures = [canvas.picture, *([] if canvas.repaint is None else [canvas.repaint]), *canvas.sources]
    return [picture.tobytes() for picture in pictures]


def canvas_from_blobs(values: dict[str, Any] | None, blobs: Sequence[bytes], size: Size) -> Canvas | None:
    """The input again. Raises: ValueError: its pixels are not of the sizes told."""
    if values is None:
        return None
    shape = (size.width_px, size.height_px)
    pixels = iter(blobs)
    picture = Image.frombytes("RGB", shape, next(pixels))
    repaint = Image.frombytes("L", shape, next(pixels)) if values["masked"] else None
    sizes = [Size.parse(text) for text in values["sources"]]
    shapes = [(source.width_px, source.height_px) for source in sizes]
    sources = [Image.frombytes("RGB", shape, each) for shape, each in zip(shapes, pixels, strict=True)]
    return Canvas(picture, repaint, tuple(sources))
