"""Puts a pipeline where its load order says, by the hooks of diffusers and accelerate. See node.offload."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from node.offload import Offload


def place(pipeline: Any, device: torch.device, offload: Offload) -> None:
    """Bring a pipeline that was just opened, on the CPU, onto its device."""
    if offload is Offload.NONE:
        pipeline.to(device)
    elif offload is Offload.MODEL:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        # By layer and not by block: what a block is, each architecture says for itself, and text encoders say nothing.
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")


def back_to_main_memory(pipeline: Any) -> None:
    """After a run, however it ended: the last component that was used goes too.

    A pipeline's own call does it at its end, but only for hooks that it set itself, and not when it is stopped.
    """
    pipeline.maybe_free_model_hooks()


@contextmanager
def lifted(pipeline: Any, device: torch.device, offload: Offload) -> Iterator[None]:
    """Without the hooks that move whole components, for changes to what is in them.

    diffusers lifts them itself when a LoRA comes, but sets them again for whichever accelerator it finds.
    """
    if offload is not Offload.MODEL:
        yield
        return
    pipeline.remove_all_hooks()
    try:
        yield
    finally:
        place(pipeline, device, offload)
