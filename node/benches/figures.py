"""Figures of a node beside the bare pipeline, measured in turns: a busy machine slows both alike.

Every ratio is the median over the turns, with the quartiles of its turns beside it.
"""

import base64
import io
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from common.images_api import Preset
from node.benches.bare import Bare, Work
from node.benches.process import RunningNode
from node.likeness import psnr_db

BATCHES = (1, 2, 4, 8)
ROUNDS = 3
"""Of throughput: rounds of the node's clients, and of the bare loop in between."""


def beside(node: RunningNode, bare: Bare, model: str, work: Work, *, count: int) -> dict[str, Any]:
    """One client of the node, and the bare pipeline, in turns. `overhead_ratio`: whole node / bare pipeline."""
    first = node.ask(work.body(model, 0))
    bare.paint(work, 0)
    nodes, bares, denoise = [], [], []
    for turn in range(count):
        began = time.perf_counter()
        answer = node.ask(work.body(model, turn))
        nodes.append(time.perf_counter() - began)
        denoise.append(answer["timings"]["denoise"])
        bares.append(timed(lambda turn=turn: bare.paint(work, turn)))  # type: ignore[misc]
    node_s, bare_s = statistics.median(nodes), statistics.median(bares)
    return {
        "size": f"{work.width_px}x{work.height_px}",
        "steps": work.steps,
        "node_s": round(node_s, 4),
        "bare_s": round(bare_s, 4),
        "overhead_ratio": round(node_s / bare_s, 4),
        "overhead_ratio_quartiles": quartiles([mine / its for mine, its in zip(nodes, bares, strict=True)]),
        "overhead_ms": round(1000 * (node_s - bare_s), 1),
        "step_s": round(statistics.median(denoise) / work.steps, 5),
        "load_s": first["timings"]["load"],
        "images_per_s": round(1 / node_s, 3),
        "images_per_s_of_bare": round(1 / bare_s, 3),
    }


def together(node: RunningNode, bare: Bare, model: str, work: Work, *, count: int, clients: int) -> dict[str, Any]:
    """Many clients at once, and the bare pipeline in a loop, in rounds of `count` pictures each."""
    ratios, per_image = [], []
    for _ in range(ROUNDS):
        bare_s = timed(lambda: [bare.paint(work, seed) for seed in range(count)])

        def ask_all() -> None:
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(node.ask, (work.body(model, seed) for seed in range(count))))

        node_s = timed(ask_all)
        ratios.append(bare_s / node_s)
        per_image.append(node_s / count)
    return {
        f"images_per_s_of_{clients}_clients": round(1 / statistics.median(per_image), 3),
        "throughput_ratio": round(statistics.median(ratios), 4),
        "throughput_ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
    }


def batched(node: RunningNode, bare: Bare, model: str, work: Work, *, count: int, clients: int) -> dict[str, Any]:
    """The same clients with requests that may share passes, and what the node has measured of passes by their size.

    Before it is measured enough is asked for that the node knows what pays: each size twice, all of them at once.
    """
    sizes: list[int] = []

    def ask_all(pictures: int) -> None:
        with ThreadPoolExecutor(clients) as pool:
            answers = pool.map(node.ask, (work.body(model, seed, exact=False) for seed in range(pictures)))
            sizes[:] = [answer["parameters"]["batch"] for answer in answers]

    ask_all(2 * sum(BATCHES) + clients)
    ratios, per_image = [], []
    for _ in range(ROUNDS):
        bare_s = timed(lambda: [bare.paint(work, seed) for seed in range(count)])
        node_s = timed(lambda: ask_all(count))
        ratios.append(bare_s / node_s)
        per_image.append(node_s / count)
    return {
        f"images_per_s_of_{clients}_clients_batched": round(1 / statistics.median(per_image), 3),
        "batched_throughput_ratio": round(statistics.median(ratios), 4),
        "batched_throughput_ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "batch_sizes": sorted(set(sizes)),
        "batch_table_s_per_image": node.status().batch_s,
    }


def preset_figures(
    node: RunningNode, model: str, presets: Sequence[Preset], work: Work, *, count: int
) -> dict[str, dict[str, float]]:
    """What each preset of a model gains and costs, beside every step in full with the same seeds, in turns."""
    seconds: dict[Preset, list[float]] = {preset: [] for preset in (Preset.FULL, *presets)}
    likeness: dict[Preset, list[float]] = {preset: [] for preset in presets}
    for seed in range(count if presets else 0):
        pictures = {}
        for preset, times in seconds.items():
            began = time.perf_counter()
            answer = node.ask(work.body(model, seed, preset=preset.value))
            times.append(time.perf_counter() - began)
            pictures[preset] = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        for preset in presets:
            likeness[preset].append(psnr_db(pictures[Preset.FULL], pictures[preset]))
    full_s = statistics.median(seconds[Preset.FULL]) if presets else 0.0
    return {
        preset.value: {
            "speed": round(full_s / statistics.median(seconds[preset]), 2),
            "psnr_db": round(statistics.median(likeness[preset]), 1),
            "lowest_psnr_db": round(min(likeness[preset]), 1),
        }
        for preset in presets
    }


def batch_curve(bare: Bare, work: Work) -> dict[int, float]:
    """Seconds a picture by batch size: what batching would pay on this device."""
    curve = {}
    for batch in BATCHES:
        bare.paint(work, 0, batch)
        curve[batch] = round(timed(lambda batch=batch: bare.paint(work, 0, batch)) / batch, 4)  # type: ignore[misc]
    return curve


def cancel_latency_s(node: RunningNode, model: str, work: Work, *, count: int = 3) -> float:
    """Seconds from the order to cancel a run that has made a step until the node holds it no more; the median."""
    seconds = []
    for seed in range(count):
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(node.client.post, "/v1/images/generations", json=work.body(model, seed))
            while not (jobs := node.status().jobs) or not jobs[0].step:
                if sent.done():
                    sent.result().raise_for_status()
                    break
            else:
                began = time.perf_counter()
                node.cancel(jobs[0].run_id)
                sent.result()
                seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds), 4) if seconds else 0.0


class PeakOnDevice:
    """The largest part of the device's memory that was taken within the block, as the node's status tells it."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self._before = self._taken()
        self._peak = self._before
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)

    def __enter__(self) -> "PeakOnDevice":
        self._watch.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._watch.join()

    @property
    def bytes(self) -> int:
        """Above what was taken before."""
        return max(0, self._peak - self._before)

    def _taken(self) -> int:
        device = self._node.status().device
        return device.memory_total_bytes - device.memory_free_bytes

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self._peak = max(self._peak, self._taken())


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
