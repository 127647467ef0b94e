"""What a request says of pictures that guide -> the ControlNets, exactly, and the pictures as they are given to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from common.errors import ControlRefused, InvalidRequest
from common.images_api import ControlAsk, Preprocess, Size
from node.checkpoints import Checkpoint
from node.control_classes import CONTROL_CLASSES
from node.control_net_classes import NETS
from node.controls import ControlFile, Controls
from node.decoding import Decoder
from node.engine_names import EngineName
from node.engines.base import ControlUse, RunSpec
from node.masks import Canvas, fitted, flattened
from node.models import Model


async def with_controls(
    spec: RunSpec, asks: Sequence[ControlAsk], model: Model, controls: Controls, decoder: Decoder
) -> RunSpec:
    """The spec with its ControlNets.

    Raises: ControlRefused: one that is not here or does not fit, or a model or method that none can guide;
    UserImageError: a picture cannot be decoded.
    """
    if not asks:
        return spec
    check_guidable(spec, model)
    if len(asks) > 1 and not NETS[model.profile.family].several:
        raise ControlRefused(
            f"Models of {model.profile.family.value} are guided by one ControlNet at a time, but got {len(asks)} instead.",
            code="control_unsupported",
        )
    files = [controls.choose(ask, model.profile.family) for ask in asks]
    pictures = [await decoder.decode(ask.image) for ask in asks]
    # In a thread: the first use of a file reads it whole, for its hash, and finding edges takes a while.
    return replace(spec, controls=await asyncio.to_thread(_uses, asks, files, pictures, controls, spec.size))


def check_guidable(spec: RunSpec, model: Model) -> None:
    """Raises: ControlRefused: no engine or no pipeline of the model takes a ControlNet."""
    family = model.profile.family
    methods = CONTROL_CLASSES.get(family, {})
    if not methods or not model.by_diffusers:
        able = ", ".join(each.value for each in CONTROL_CLASSES)
        raise ControlRefused(
            f"The model {model.name!r} takes no 'control' here: ControlNets guide models of {able}, run by diffusers.",
            code="control_unsupported",
        )
    if spec.method not in methods:
        raise ControlRefused(f"For {family.value}, {spec.method} takes no 'control'.", code="control_unsupported")


def check_engine(chosen: Checkpoint, field: str) -> None:
    """Raises: InvalidRequest: of a model's files this node runs one by an engine that has no such field."""
    if chosen.engine is not EngineName.DIFFUSERS:
        raise InvalidRequest(
            f"This node runs the model {chosen.name!r} by {chosen.engine}, which takes no {field!r}.",
            param=field,
            code=f"{field}_unsupported",
        )


def _uses(
    asks: Sequence[ControlAsk],
    files: Sequence[ControlFile],
    pictures: Sequence[Image.Image],
    controls: Controls,
    size: Size,
) -> tuple[ControlUse, ...]:
    try:
        hashes = [controls.sha256.of(file.path) for file in files]
    except OSError as error:
        raise ControlRefused(f"The file of a ControlNet cannot be read ({error.strerror}).") from None
    return tuple(
        ControlUse(
            name=file.name,
            kind=file.kind,
            scale=ask.scale,
            start=ask.start,
            end=ask.end,
            preprocess=ask.preprocess,
            sha256=file_hash,
            image_sha256=ask.image.sha256().hex(),
            picture=prepared(picture, ask.preprocess, size),
        )
        for ask, file, file_hash, picture in zip(asks, files, hashes, pictures, strict=True)
    )


def prepared(picture: Image.Image, preprocess: Preprocess, size: Size) -> Image.Image:
    """RGB at the size of the run's picture. Edges are found there, so that their lines are a pixel wide."""
    fitting = fitted(Canvas(flattened(picture), None), size).picture
    if preprocess is Preprocess.NONE:
        return fitting
    # Here, for it takes NumPy, which a node without diffusers does not have.
    from node.canny import canny

    return canny(fitting)
