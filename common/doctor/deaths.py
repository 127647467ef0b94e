"""Why did it die? Out of an exit code and the end of a log.

Two deaths are mixed up again and again. Exit 137 is SIGKILL: the kernel ends a process when main memory is gone, and it does
so for nothing that happens on a GPU. A GPU that is full says so in words, and the process lives on.
"""

import re
import signal
from collections.abc import Iterator

from common.doctor import Finding

RAM_ADVICE = (
    "This is main memory, not the GPU's: take a smaller model or a quantised one (GGUF), see that weights are loaded as "
    "bfloat16 or float16 and not float32, switch offload to main memory off, or add memory (limits of containers count)."
)
VRAM_ADVICE = (
    "This is the GPU's memory, not main memory: ask for smaller pictures or fewer at once (n), let the VAE decode in tiles, "
    "take a smaller or quantised model, or see with nvidia-smi who else uses the GPU."
)

_WORDS: tuple[tuple[str, str, str, str], ...] = (
    (
        "main memory",
        r"insufficient_memory|\bOut of memory: Killed process\b|\boom-kill:|^Killed$|\(exit (?:-9|137)\)|\bexit code 137\b",
        "the system killed a process because main memory ran out",
        RAM_ADVICE,
    ),
    (
        "GPU memory",
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|cudaMalloc failed: out of memory|"
        r"the device is out of memory|MPS backend out of memory",
        "the GPU's memory did not suffice",
        VRAM_ADVICE,
    ),
    (
        "GPU unused",
        r"Torch not compiled with CUDA enabled|No CUDA GPUs are available|CUDA driver version is insufficient|"
        r"no kernel image is available for execution|libcuda\.so\S*: cannot open",
        "torch cannot use the GPU",
        "Compare the driver (nvidia-smi) with the CUDA of torch (python -c 'import torch; print(torch.version.cuda)'): install "
        "a build of torch that fits; in a container, start it with the NVIDIA runtime.",
    ),
    (
        "dtype",
        r"\b(?:cuda|gpu)\b.*dtype[\"'=: ]+(?:torch\.)?float32\b|dtype[\"'=: ]+(?:torch\.)?float32\b.*\b(?:cuda|gpu)\b",
        "weights are loaded as float32 on a GPU: twice the memory, and slower",
        "Leave AQUATINT__NODE__DTYPE at auto: bfloat16 where the GPU has it, else float16.",
    ),
    (
        "pipeline class",
        r"AutoPipeline can't find a pipeline|can't find a pipeline linked to|Pipeline \S+ expected .* but only .* were passed|"
        r"is not a pipeline class|checkpoint_refused",
        "a checkpoint was loaded with a class that is not its own, or refused",
        "A folder's model_index.json names its class: `aquatint models scan` says what each checkpoint is taken for and why.",
    ),
    (
        "offload",
        r"enable_sequential_cpu_offload|sequential(?:ly)? (?:cpu )?offload|offload[\"'=: ]+sequential",
        "weights are moved between main memory and the GPU, layer by layer, at every step",
        "That is ten times slower, and needs the model's whole size in main memory: only for a GPU that cannot hold it.",
    ),
)
"""check, what its lines hold, what that means, what to do."""


def of_exit_code(code: int) -> Iterator[Finding]:
    """code: as a shell, a container or systemd tells it (137), or as Python does (-9)."""
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if code == 0:
        yield Finding("exit code", "ok", "0: it ended in good order")
    elif number == signal.SIGKILL:
        yield Finding("exit code", "error", f"{code}: killed (SIGKILL), nearly always because main memory ran out", RAM_ADVICE)
    elif number == signal.SIGTERM:
        yield Finding("exit code", "ok", f"{code}: it was asked to end (SIGTERM)")
    elif number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL):
        advice = "Native code crashed: a driver, torch or sd.cpp. SIGILL: it was built for another processor."
        yield Finding("exit code", "error", f"{code}: {signal.Signals(number).name}", advice)
    else:
        yield Finding("exit code", "error", f"{code}: it ended by itself with an error", "Read the end of its log: --log FILE.")


def of_log(text: str) -> Iterator[Finding]:
    """Every known cause that a log names, once, with the last line that does; "ok" if it names none."""
    lines = text.splitlines()
    known = False
    for check, words, meaning, advice in _WORDS:
        named = [line for line in lines if re.search(words, line)]
        if named:
            known = True
            times = f" ({len(named)} times)" if len(named) > 1 else ""
            yield Finding(f"log: {check}", "error", f"{meaning}{times}: {named[-1].strip()[:200]}", advice)
    if not known:
        yield Finding("log", "ok", f"{len(lines)} lines, none that names a known cause of death")
