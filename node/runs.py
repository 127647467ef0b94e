"""Carries one request through the node: choose, queue, load, run, record, answer."""

import asyncio
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from common import tracing
from common.catalog import AttemptFenced, new_id
from common.clock import clock
from common.errors import AquatintError, InvalidRequest, UnknownModel, UserImageError
from common.images_api import AssetLinks, ImageRequest, Picture, Preset, ResponseFormat, Task, usage
from common.logs import bind, get_logger
from common.node_api import DeviceStatus, JobPhase, RunTook, work_words
from common.web.background import beside
from node.batch_table import BatchTable, shape_of
from node.beside import Beside
from node.control_requests import check_engine, with_controls
from node.decoding import Decoder
from node.engine_names import EngineName
from node.engines.base import Method, PassTime, RunSpec
from node.image_prompt_requests import with_image_prompt
from node.lora_requests import with_loras
from node.masks import Canvas, as_source, canvas_of, fitted, flattened
from node.memory_ladder import Asked, MemoryLadder, Plan
from node.metrics import NodeMetrics
from node.models import Model, Models
from node.offload import Offload
from node.recorder import Recorder, Sender, Ticket
from node.resolve import Resolved, check_task, resolve
from node.scheduler import Job, Pace, Scheduler
from node.sharing import shared_key, steps_key
from node.upscale_requests import with_upscale
from node.worker.causes import WorkerLost
from node.worker.handle import OnFile, Order, Product, Worker

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client, as a body or as the last event of a stream."""

    head: dict[str, Any]
    pictures: tuple[Picture, ...]
    run_id: str
    seeds: tuple[int, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a run has beside its spec: pixels to start from, and someone who watches."""

    canvas: Canvas | None
    on_preview: OnFile | None


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a run may share of the device with others: see Job."""

    shared_key: Hashable | None
    steps_key: Hashable | None
    light: bool


ALONE = Sharing(None, None, light=False)
"""Also before the worker is there."""


@dataclass(frozen=True, slots=True)
class Waits:
    """What a run waited for after its turn had come, in seconds."""

    load_s: float
    """Until its model was there, or known to be."""
    behind_s: float
    """Until the device turned to it, sent while another run was ending."""


class Runs:
    """The node's main path. Every request is one call of `make`."""

    def __init__(
        self,
        *,
        models: Models,
        worker: Worker,
        ladder: MemoryLadder,
        scheduler: Scheduler,
        pace: Pace,
        recorder: Recorder,
        links: AssetLinks,
        metrics: NodeMetrics,
        node: str,
        decoder: Decoder,
        embed_parameters: bool,
        preset: Preset = Preset.FULL,
        batches: BatchTable | None = None,
    ) -> None:
        """preset: of requests that name none. batches: None makes one picture after another."""
        self._models = models
        self._worker = worker
        self._ladder = ladder
        self._scheduler = scheduler
        self._pace = pace
        self._recorder = recorder
        self._links = links
        self._metrics = metrics
        self._node = node
        self._decoder = decoder
        self._embed_parameters = embed_parameters
        self._preset = preset
        self._batches = batches

    async def make(self, request: ImageRequest, sender: Sender, on_preview: OnFile | None = None) -> Answer:
        """Make the pictures of a request and record them. Cancelling the caller cancels the run.

        on_preview: called with (number, file) of each partial picture the request asks for.

        Raises: InvalidRequest and its kinds, and OutOfDeviceMemory where it is known to come: before anything is recorded;
        TooManyRequests, Unavailable: not taken;
        anything in common.errors afterwards, and then the run's row says so too.
        """
        model = self._model(request)
        check_task(request, model.name, model.profile)
        canvas = await self._canvas(request)
        request = _as_turned(request, canvas)
        masked = canvas is not None and canvas.repaint is not None
        read, loras = await with_loras(request, model.checkpoint.family, self._models.loras)
        resolved = resolve(
            read,
            model.name,
            model.profile,
            embed_parameters=self._embed_parameters,
            masked=masked,
            loras=loras,
            preset=self._preset,
            image_prompt=model.image_prompt is not None,
        )
        spec = await with_image_prompt(resolved.spec, model.image_prompt, self._models.image_prompts.sha256)
        spec = await with_controls(spec, request.control, model, self._models.controls, self._decoder)
        spec = await with_upscale(spec, request.upscale, model, self._models.upscalers, masked=masked)
        resolved = replace(resolved, spec=spec)
        sharing = ALONE
        if (device := self._worker.device) is not None:
            asked = self._asked(model, request.task, spec, device)
            self._ladder.check(asked, device)
            sharing = self._sharing(asked, device, spec, alone=request.made_exactly or canvas is not None)
        drawing = Drawing(_for_method(canvas, spec), on_preview)
        run_id = sender.run_id or new_id("run")
        bind(run_id=run_id)
        tracing.note(run_id=run_id, model=model.name)
        job = Job(
            run_id,
            model.name,
            spec.work_units,
            spec.total_steps,
            pictures=len(spec.seeds),
            shared_key=sharing.shared_key,
            shape=shape_of(spec),
            work=work_words(request, spec.preset),
            pixels=spec.size.pixels,
            steps_key=sharing.steps_key,
            light=sharing.light,
        )
        async with self._scheduler.place(job):
            ticket = await self._recorder.begin(request, spec, sender, run_id)
            try:
                return await self._carry_out(job, ticket, model, resolved, request, sender, drawing)
            except asyncio.CancelledError:
                reason = "Cancelled by an operator." if job.cancel_ordered else "The client left."
                if not job.off_device:
                    await asyncio.shield(self._recorder.cancelled(ticket, reason))
                raise
            except AttemptFenced:
                log.info("result_dropped", attempt=ticket.attempt)
                raise
            except Exception as error:
                known = error if isinstance(error, AquatintError) else AquatintError("The node had an internal error.")
                log.warning("run_failed", code=known.code, reason=known.message)
                await asyncio.shield(self._recorder.failed(ticket, known))
                raise
            finally:
                self._recorder.release(ticket)

    def _model(self, request: ImageRequest) -> Model:
        if request.model is None:
            return self._models.default
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(request.model)
        return model

    def _sharing(self, asked: Asked, device: DeviceStatus, spec: RunSpec, *, alone: bool) -> Sharing:
        """alone: it may share no pass."""
        plan = self._ladder.plan(asked.model, device)
        if plan.choice.checkpoint.engine is not EngineName.DIFFUSERS:
            # A worker that ends with a run of sd.cpp, to cancel it, must not take another run with it.
            return ALONE
        light, exact = asked.beside == Beside(), alone or self._batches is None
        # Weights that are on their way to the device and back cost a step more than company saves.
        at_hand = plan.offload.mode is Offload.NONE
        # What must be exact is alone on a GPU: with several streams at work cuBLAS does not promise the same bits.
        stepping = at_hand and (device.kind == "cpu" or not exact)
        key = steps_key(spec, plan.choice.checkpoint.family, exact=exact) if stepping else None
        return Sharing(None if exact else shared_key(spec), key, light)

    async def _canvas(self, request: ImageRequest) -> Canvas | None:
        """The uploaded pictures as pixels. Raises: UserImageError: they cannot be decoded, or do not go together."""
        if not request.images:
            return None
        pictures = [await self._decoder.decode(upload) for upload in request.images]
        picture, sources = pictures[0], tuple(map(as_source, pictures))
        if request.mask is None:
            canvas = canvas_of(picture, None) if request.task is Task.EDIT else Canvas(flattened(picture), None)
            return replace(canvas, sources=sources)
        mask = await self._decoder.decode(request.mask)
        if mask.size != picture.size:
            raise UserImageError(
                "Invalid mask image format - mask size does not match image size", code="invalid_mask_image_format"
            )
        return replace(canvas_of(picture, mask), sources=sources)

    async def _carry_out(
        self,
        job: Job,
        ticket: Ticket,
        model: Model,
        resolved: Resolved,
        request: ImageRequest,
        sender: Sender,
        drawing: Drawing,
    ) -> Answer:
        entered = time.perf_counter()
        await job.turn.wait()
        began = time.perf_counter()
        # The device need not wait for the catalog to have written down that its turn has come.
        running = self._run(job, model, request.task, resolved.spec, drawing)
        product, waits, plan = await beside(running, self._recorder.running(ticket))
        self._scheduler.leave_device(job)
        ended = time.perf_counter()
        timings_s = {"queued": began - entered + waits.behind_s, "load": waits.load_s}
        timings_s |= product.timings_s | {"total": ended - entered}
        timings_s = {phase: round(seconds, 4) for phase, seconds in timings_s.items()}
        tracing.phases({phase: seconds for phase, seconds in timings_s.items() if phase != "total"})
        # Shielded: the pictures are made, so they are kept even if the client leaves at this very moment.
        recording = asyncio.create_task(self._record(ticket, model, resolved, product, plan, request, timings_s))
        try:
            head, ids = await asyncio.shield(recording)
        except asyncio.CancelledError:
            await asyncio.wait({recording})
            raise
        self._metrics.made(model.name, len(ids), timings_s)
        log.info("run_succeeded", model=model.name, images=len(ids), **timings_s)
        return self._answer(head, ids, product, resolved, request, sender)

    def _asked(self, model: Model, task: Task, spec: RunSpec, device: DeviceStatus) -> Asked:
        return Asked(model, task.value, spec.largest_drawn, model.beside(spec, device.kind, self._ladder.dtype))

    async def _run(self, job: Job, model: Model, task: Task, spec: RunSpec, drawing: Drawing) -> tuple[Product, Waits, Plan]:
        """The pictures, what was waited for, and how the model was loaded."""
        try:
            return await self._run_once(job, model, task, spec, drawing)
        except WorkerLost:
            if not job.behind and (job.share is None or job.share.runs <= 1):
                raise
        # One of those in the pass, or before it, may have been the worker's end: it must not be the end of the others.
        log.warning("run_repeated_alone", model=model.name)
        self._scheduler.again_alone(job)
        await job.turn.wait()
        return await self._run_once(job, model, task, spec, drawing)

    async def _run_once(
        self, job: Job, model: Model, task: Task, spec: RunSpec, drawing: Drawing
    ) -> tuple[Product, Waits, Plan]:
        device = await self._worker.wait_ready()
        if spec.preset is not Preset.FULL and self._ladder.plan(model, device).choice.checkpoint.engine is EngineName.SDCPP:
            raise InvalidRequest(
                f"Invalid 'preset': this node runs the model by sd.cpp, which has only 'full', but got {spec.preset.value!r}.",
                param="preset",
            )
        if spec.controls or spec.upscale:
            check_engine(self._ladder.plan(model, device).choice.checkpoint, "control" if spec.controls else "upscale")
        if not job.behind:
            job.phase = JobPhase.LOADING
        self._scheduler.on_change()
        began = sent = turned = job.loading_since_s = time.perf_counter()

        def on_begin() -> None:
            nonlocal turned
            turned, job.phase, job.behind = time.perf_counter(), JobPhase.RUNNING, False
            self._scheduler.on_change()

        def on_step(step: int, steps: int) -> None:
            self._scheduler.stepped(job, step)

        run, shared = Order(spec, on_step, drawing.canvas, drawing.on_preview, on_begin), True

        async def attempt() -> Product:
            nonlocal sent, shared
            sent, job.loading_since_s = time.perf_counter(), None
            if not shared:
                return await self._worker.product_of(run)
            shared = False
            return await self._sent(job, run)

        fitted = await self._ladder.make(self._asked(model, task, spec, device), device, attempt)
        self._learn(job, model, spec, fitted.product, time.perf_counter() - turned)
        return fitted.product, Waits(sent - began, turned - sent), fitted.plan

    async def _sent(self, job: Job, run: Order) -> Product:
        """Go to the worker together with those the turn came with."""
        assert job.share is not None
        number, share = self._worker.prepare(run), None if job.steps_key is None else job.share.number
        job.share.arrive(job.run_id, number, partial(self._worker.send, share=share))
        return await self._worker.product(number)

    def _learn(self, job: Job, model: Model, spec: RunSpec, product: Product, took_s: float) -> None:
        """Take in what the run took: its own share of it where it was made with others."""
        pictures = len(spec.seeds)
        together = job.share.pictures if job.share is not None else pictures
        own_s = took_s * pictures / max(pictures, together)
        if product.own_s is not None and together > pictures:
            own_s = product.own_s
        self._pace.runs_took.append(_took(job, own_s, product))
        if spec.preset is not Preset.FULL:
            # What is learned is the price of a whole step.
            return
        self._pace.learn_run(model.name, own_s, spec.work_units)
        if self._batches is not None and shared_key(spec) is not None and not product.vae_tiled:
            alone = PassTime(1, (product.timings_s["denoise"] + product.timings_s["decode"]) / pictures)
            # Of steps that came in all sizes nothing is learned but what is told of them.
            for each in product.passes or ((alone,) if product.own_s is None else ()):
                self._batches.learn(job.shape, each)

    async def _record(
        self,
        ticket: Ticket,
        model: Model,
        resolved: Resolved,
        product: Product,
        plan: Plan,
        request: ImageRequest,
        timings_s: dict[str, float],
    ) -> tuple[dict[str, Any], list[str]]:
        spec = resolved.spec
        effective = _effective(resolved, product, plan)
        head = {
            "created": int(clock.now_s()),
            "background": "opaque",
            "output_format": spec.output_format.value,
            "quality": spec.quality,
            "size": str(spec.final_size),
            "usage": usage(
                text_tokens=product.prompt_tokens,
                pictures=len(spec.seeds),
                width_px=spec.final_size.width_px,
                height_px=spec.final_size.height_px,
                inputs_px=[(image.width_px, image.height_px) for image in request.images],
            ),
            "id": ticket.run_id,
            "model": model.name,
            "parameters": effective,
            "timings": timings_s,
        }
        told_user = request.safety_identifier or request.user
        if told_user is not None:
            head["safety_identifier"] = told_user
        recording = self._recorder.succeeded(
            ticket,
            spec,
            product.files,
            effective=effective | {"node": self._node, "profile": model.profile.name},
            timings_s=timings_s,
            answer=head,
        )
        return head, await tracing.span("record", recording)

    def _answer(
        self,
        head: dict[str, Any],
        ids: list[str],
        product: Product,
        resolved: Resolved,
        request: ImageRequest,
        sender: Sender,
    ) -> Answer:
        # Links count from the second that the answer names, so that they can be written again as they were.
        spec, now_s = resolved.spec, float(head["created"])
        # A stream always carries the bytes: its events have no place for a link.
        as_url = request.effective_response_format is ResponseFormat.URL and not request.stream
        pictures = [
            Picture(
                seed,
                image_id,
                content=None if as_url else content,
                url=self._links.sign(sender.base_url, image_id, spec.output_format, now_s=now_s) if as_url else None,
            )
            for seed, image_id, content in zip(spec.seeds, ids, product.files, strict=True)
        ]
        return Answer(head, tuple(pictures), head["id"], spec.seeds, resolved.ignored)


def _took(job: Job, own_s: float, product: Product) -> RunTook:
    """What routers are told. own_s: the run's share of its pass, whose phases share it as they shared the pass."""
    phases_s = product.timings_s
    denoised = phases_s["denoise"] / max(sum(phases_s.values()), 1e-9)
    return RunTook(
        run_id=job.run_id,
        model=job.model,
        work=job.work,
        pixels=job.pixels,
        pictures=job.pictures,
        work_units=job.work_units,
        steps_s=own_s * min(1.0, denoised),
        rest_s=own_s * max(0.0, 1.0 - denoised),
    )


def _as_turned(request: ImageRequest, canvas: Canvas | None) -> ImageRequest:
    """The request with the size its picture has once it is turned upright, which is what `auto` means."""
    if canvas is None:
        return request
    width_px, height_px = canvas.picture.size
    return request._replace(images=(replace(request.images[0], width_px=width_px, height_px=height_px), *request.images[1:]))


def _for_method(canvas: Canvas | None, spec: RunSpec) -> Canvas | None:
    """The input at the size of the picture, and the sources only for those who look at them: they go through a socket."""
    if canvas is None:
        return None
    looks = spec.method in (Method.EDIT, Method.IMAGE_PROMPT)
    return fitted(canvas if looks else replace(canvas, sources=()), spec.size)


def _effective(resolved: Resolved, product: Product, plan: Plan) -> dict[str, Any]:
    """What really ran: enough to make the same pictures again, and what was asked for in vain."""
    spec = resolved.spec
    return {
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seeds[0],
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "true_cfg_scale": spec.true_cfg_scale,
        "sampler": spec.sampler,
        "sampler_class": product.sampler,
        "engine": plan.choice.checkpoint.engine.value,
        "format": plan.choice.checkpoint.format.value,
        "format_chosen": plan.choice.reason,
        "offload": plan.offload.mode.value,
        "offload_chosen": plan.offload.reason,
        "timestep_spacing": spec.timestep_spacing,
        "drawn_size": str(spec.drawn),
        "method": spec.method.value,
        "strength": spec.strength,
        "preset": spec.preset.value,
        "mask_feather_px": spec.feather_px,
        "output_compression": spec.output_compression,
        "prompt_tokens": product.prompt_tokens,
        "prompt_truncated": product.prompt_truncated,
        "vae_tiled": product.vae_tiled,
        "batch": product.batch,
        "loras": [asdict(each) | {"layers": product.lora_layers[each.name]} for each in spec.loras],
        "control": [each.to_json() for each in spec.controls],
        "image_prompt": None if spec.image_prompt is None else asdict(spec.image_prompt),
        "upscale": None if spec.upscale is None else spec.upscale.to_json(),
        "ignored": list(resolved.ignored),
    }
