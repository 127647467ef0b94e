"""A node without a device that takes its time: loads and steps as long as those of a device of its speed, one run at a time.

Its answers are empty pictures; what it tells of itself is what a node tells. `--speed 2` is twice as fast as `--speed 1`.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from common.node_api import (
    RUN_ID_HEADER,
    DeviceStatus,
    JobPhase,
    JobStatus,
    LoadTook,
    ModelStatus,
    NodePhase,
    NodeStatus,
    RunTook,
)
from common.state_lines import MEDIA_TYPE, SAID_EVERY_S, line_of

MODELS = ("paced-a", "paced-b")
STEP_S = 0.1
"""Of a megapixel-step at speed 1."""
PICTURE_S = 0.15
"""Of what a picture takes besides."""
LOAD_S = 3.0
"""At any speed."""
TOLD = 16
EMPTY = b'{"created":0,"data":[{"b64_json":""}]}'


class PacedNode:
    """See the module. fits: models on its device at once."""

    def __init__(self, speed: float, fits: int, *, load_s: float = LOAD_S) -> None:
        self._speed = speed
        self._fits = fits
        self._load_s = load_s
        self._resident: list[str] = []
        self._jobs: dict[str, JobStatus] = {}
        self._loading_since_s: dict[str, float] = {}
        self._runs_took: list[RunTook] = []
        self._loads_took: list[LoadTook] = []
        self._numbers = count()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Condition()

    def status(self) -> NodeStatus:
        """As a node tells it."""
        now_s = time.perf_counter()
        loading = {run_id: now_s - since_s for run_id, since_s in self._loading_since_s.items()}
        return NodeStatus(
            name="paced",
            version="0",
            phase=NodePhase.READY,
            device=DeviceStatus(kind="cpu", name="paced", memory_total_bytes=1, memory_free_bytes=1),
            models=[
                ModelStatus(
                    id=name,
                    family="paced",
                    profile="paced",
                    tasks=["generation"],
                    created=0,
                    resident=name in self._resident,
                    capabilities={"default_size": "1000x1000", "default_steps": 10},
                )
                for name in MODELS
            ],
            jobs=[each.model_copy(update={"loading_s": loading.get(each.run_id, 0.0)}) for each in self._jobs.values()],
            runs_took=self._runs_took[-TOLD:],
            loads_took=self._loads_took[-TOLD:],
            resident=list(self._resident),
            max_resident=self._fits,
        )

    async def states(self) -> AsyncIterator[bytes]:
        """Its state as it changes."""
        before = None
        while True:
            now = self.status()
            yield line_of(before, now)
            before = now
            with suppress(TimeoutError):
                async with self._changed, asyncio.timeout(SAID_EVERY_S):
                    await self._changed.wait()

    async def make(self, run_id: str, model: str, pixels: int, steps: int) -> None:
        """One run, from its entry to its end."""
        units = pixels / 1e6 * steps
        job = JobStatus(
            run_id=run_id,
            model=model,
            phase=JobPhase.QUEUED,
            steps=steps,
            work_units=units,
            work="generation",
            pixels=pixels,
        )
        await self._tell(job)
        try:
            async with self._turn:
                await self._load(job)
                began_s = time.perf_counter()
                for step in range(1, steps + 1):
                    # Until a moment, not for a time: what is late once is not late ever after.
                    until_s = began_s + units * STEP_S / self._speed * step / steps
                    await asyncio.sleep(max(0.0, until_s - time.perf_counter()))
                    await self._tell(job.model_copy(update={"phase": JobPhase.RUNNING, "step": step}))
                stepped_s = time.perf_counter()
                await asyncio.sleep(PICTURE_S / self._speed)
                self._runs_took.append(
                    RunTook(
                        run_id=run_id,
                        model=model,
                        work="generation",
                        pixels=pixels,
                        pictures=1,
                        work_units=units,
                        steps_s=stepped_s - began_s,
                        rest_s=time.perf_counter() - stepped_s,
                    )
                )
        finally:
            del self._jobs[run_id]
            await self._tell(None)

    async def _load(self, job: JobStatus) -> None:
        if job.model not in self._resident:
            self._loading_since_s[job.run_id] = time.perf_counter()
            await self._tell(job.model_copy(update={"phase": JobPhase.LOADING}))
            await asyncio.sleep(self._load_s)
            del self._loading_since_s[job.run_id]
            self._loads_took.append(LoadTook(id=f"{id(self)}-{next(self._numbers)}", model=job.model, load_s=self._load_s))
            self._resident = self._resident[-self._fits + 1 :] if self._fits > 1 else []
        else:
            self._resident.remove(job.model)
        self._resident.append(job.model)

    async def _tell(self, job: JobStatus | None) -> None:
        if job is not None:
            self._jobs[job.run_id] = job
        async with self._changed:
            self._changed.notify_all()


def build_node(node: PacedNode) -> FastAPI:
    """It as an ASGI app."""
    app = FastAPI()

    @app.get("/node/v1/status")
    async def status() -> Response:
        return Response(node.status().model_dump_json(), media_type="application/json")

    @app.get("/node/v1/events")
    async def states() -> Response:
        return StreamingResponse(node.states(), media_type=MEDIA_TYPE)

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        asked, run_id = await request.json(), request.headers[RUN_ID_HEADER]
        width, _, height = asked["size"].partition("x")
        await node.make(run_id, asked["model"], int(width) * int(height), asked["num_inference_steps"])
        return Response(
            b'{"created":0,"data":[{"b64_json":""}]}', media_type="application/json", headers={RUN_ID_HEADER: run_id}
        )

    return app


def main() -> None:
    """One as a process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--fits", type=int, default=len(MODELS))
    wanted = parser.parse_args()
    uvicorn.run(build_node(PacedNode(wanted.speed, wanted.fits)), host="127.0.0.1", port=wanted.port, log_level="warning")


if __name__ == "__main__":
    main()
