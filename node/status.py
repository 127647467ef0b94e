"""What a node says of itself."""

from common.node_api import UNKNOWN, DeviceStatus, ModelStatus, NodePhase, NodeStatus
from common.version import VERSION
from node.engine_names import EngineName
from node.models import Model
from node.resolve import usual_preset, usual_strength
from node.services import Services

UNKNOWN_DEVICE = DeviceStatus(
    kind=UNKNOWN, name="not known until the worker has started", memory_total_bytes=0, memory_free_bytes=0
)


def phase_of(services: Services) -> NodePhase:
    """Draining wins over everything but broken: it is what the operator asked for."""
    if services.worker.broken:
        return NodePhase.BROKEN
    if services.scheduler.draining or services.teller.leaving:
        return NodePhase.DRAINING
    return NodePhase.READY if services.worker.ready else NodePhase.STARTING


def status_of(services: Services) -> NodeStatus:
    """All a router needs to know."""
    own = services.settings.node
    return NodeStatus(
        name=own.name,
        version=VERSION,
        phase=phase_of(services),
        device=services.worker.device or UNKNOWN_DEVICE,
        models=[model_status(services, model) for model in services.models],
        jobs=[job.status() for job in services.scheduler.jobs if not job.off_device],
        expected=services.places.expected,
        max_concurrency=1,
        max_queued=own.max_queued,
        seconds_per_unit=dict(services.pace.seconds_per_unit),
        load_s=dict(services.pace.load_s),
        runs_took=list(services.pace.runs_took),
        loads_took=list(services.pace.loads_took),
        batch_s={} if services.batches is None else services.batches.told(),
        resident=services.residency.residents,
        pinned=services.residency.pinned,
        budget_bytes=services.residency.budget_bytes(),
        max_resident=own.max_resident,
    )


def model_status(services: Services, model: Model) -> ModelStatus:
    """One model of this node."""
    # Before the worker has told what the device is, things are said as for a CPU.
    device = services.worker.device or UNKNOWN_DEVICE.model_copy(update={"kind": "cpu"})
    plan = services.ladder.plan(model, device)
    choice = plan.choice
    shares = choice.checkpoint.engine is EngineName.DIFFUSERS
    return ModelStatus(
        id=model.name,
        family=model.checkpoint.family.value,
        profile=model.profile.name,
        tasks=model.tasks,
        created=model.created,
        resident=services.residency.is_resident(model.name),
        loading=services.residency.is_loading(model.name),
        licence=model.profile.licence,
        capabilities=model.capabilities,
        memory_bytes=plan.order.device_bytes,
        engine=choice.checkpoint.engine.value,
        format=choice.checkpoint.format.value,
        chosen=choice.reason,
        offload=plan.offload.mode.value,
        offload_chosen=plan.offload.reason,
        loras=[key for each in model.loras for key in each.keys],
        memory_limits=services.ladder.limits(model, device),
        extras=model.extras,
        tuning=services.worker.tuning.get(model.name, {}),
        usual_strength=usual_strength(model.profile, image_prompt=model.image_prompt is not None),
        usual_preset=usual_preset(model.profile, services.settings.node.preset).value,
        quality_steps={str(quality): steps for quality, steps in model.profile.quality_steps.items()},
        batch=services.batches.wanted(model.name) if services.batches is not None and shares else 1,
        unavailable=services.residency.failure(model.name),
    )
