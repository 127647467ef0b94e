"""The pick, as a table of fleets."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.node_api import DeviceStatus, JobPhase, JobStatus, MemoryLimit, ModelStatus, NodePhase, NodeStatus
from router.placement import Ask, Candidate, Health, Outlook, place, predict_finish_s

MODEL = "sdxl"


def status(
    *,
    models: dict[str, bool] | None = None,
    jobs: list[JobStatus] | None = None,
    speed: float | None = 1.0,
    load_s: float | None = None,
    **changes: Any,
) -> NodeStatus:
    """models: name -> resident. speed: seconds per unit of every model."""
    models = {MODEL: True} if models is None else models
    told: dict[str, Any] = {
        "name": "n",
        "version": "0",
        "phase": NodePhase.READY,
        "device": DeviceStatus(kind="cuda", name="gpu", memory_total_bytes=1, memory_free_bytes=1),
        "models": [
            ModelStatus(id=name, family="f", profile="p", tasks=["generation"], created=0, resident=resident)
            for name, resident in models.items()
        ],
        "jobs": jobs or [],
        "seconds_per_unit": {} if speed is None else dict.fromkeys(models, speed),
        "load_s": {} if load_s is None else dict.fromkeys(models, load_s),
    }
    return NodeStatus(**(told | changes))


def node(name: str, told: NodeStatus | None = None, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {"node_id": name, "name": name, "health": Health.ONLINE, "status": told or status()}
    return Candidate(**(fields | changes))


def job(run_id: str, units: float, *, step: int = 0, steps: int = 0) -> JobStatus:
    return JobStatus(run_id=run_id, model=MODEL, phase=JobPhase.RUNNING, step=step, steps=steps, work_units=units)


ASK = Ask(MODEL, "generation", units=10)


def test_the_faster_node_is_picked():
    assert place(ASK, [node("slow", status(speed=2)), node("fast", status(speed=0.5))], depth=1).node_id == "fast"


def test_a_fast_node_with_much_to_do_loses_to_a_slow_one_that_is_free():
    busy = status(speed=0.5, jobs=[job("other", 100)])

    assert place(ASK, [node("fast", busy), node("slow", status(speed=2))], depth=1).node_id == "slow"


def test_a_cold_node_pays_for_its_load():
    cold = node("cold", status(models={MODEL: False}, load_s=30))
    warm = node("warm", status(jobs=[job("other", 20)]))

    assert place(ASK, [cold, warm], depth=1).node_id == "warm"
    assert predict_finish_s(ASK, cold) == 40


def test_work_that_is_half_done_counts_half():
    assert predict_finish_s(ASK, node("a", status(jobs=[job("other", 20, step=10, steps=20)]))) == 20


def test_our_own_runs_count_once_whether_or_not_the_node_has_told_of_them():
    ours = {"r1": (MODEL, 20.0)}

    assert predict_finish_s(ASK, node("a", status(), ours=ours)) == 30
    assert predict_finish_s(ASK, node("a", status(jobs=[job("r1", 20)]), ours=ours)) == 30


def test_a_device_that_never_measured_anything_is_judged_by_its_kind():
    gpu = node("gpu", status(speed=None))
    cpu = node("cpu", status(speed=None, device=DeviceStatus(kind="cpu", name="", memory_total_bytes=0, memory_free_bytes=0)))

    assert place(ASK, [cpu, gpu], depth=1).node_id == "gpu"


def test_every_node_that_is_turned_away_is_named_with_its_reason():
    fleet = [
        node("offline", health=Health.OFFLINE),
        node("draining", health=Health.DRAINING),
        node("starting", status(phase=NodePhase.STARTING)),
        node("other", status(models={"z-image": True})),
        node("full", status(jobs=[job("a", 1), job("b", 1)])),
        node("tried"),
        node("sits-out", sitting_out={MODEL: "failed 3 times in a row"}),
    ]

    placement = place(Ask(MODEL, "generation", 1, tried=frozenset({"tried"})), fleet, depth=1)

    assert placement.node_id is None
    assert placement.turned_away == {
        "offline": "offline",
        "draining": "draining",
        "starting": "starting",
        "other": "does not have the model",
        "full": "full",
        "tried": "failed under this run before",
        "sits-out": "failed 3 times in a row",
    }


def test_the_outlook_is_the_best_that_any_node_offers():
    full, away, never = (
        node("a", status(jobs=[job("x", 1), job("y", 1)])),
        node("b", health=Health.ERROR),
        node("c", status(models={})),
    )

    assert place(ASK, [full, away, never], depth=1).outlook is Outlook.FULL
    assert place(ASK, [away, never], depth=1).outlook is Outlook.AWAY
    assert place(ASK, [never], depth=1).outlook is Outlook.NONE
    assert place(ASK, [], depth=1).outlook is Outlook.NONE


def test_equal_nodes_take_turns_as_they_fill():
    first = place(ASK, [node("a"), node("b")], depth=1)
    second = place(ASK, [node("a", ours={"r1": (MODEL, 10.0)}), node("b")], depth=1)

    assert (first.node_id, second.node_id) == ("a", "b")


@given(
    healths=st.lists(st.sampled_from(Health), max_size=6),
    held=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    depth=st.integers(0, 2),
)
def test_no_run_goes_to_a_node_that_is_not_well_or_is_full(healths: list[Health], held: list[int], depth: int):
    fleet = [
        node(str(i), health=health, ours={f"{i}.{k}": (MODEL, 1.0) for k in range(held[i])}) for i, health in enumerate(healths)
    ]

    placement = place(ASK, fleet, depth=depth)

    fit = [c for c in fleet if c.health is Health.ONLINE and len(c.ours) < 1 + depth]
    assert (placement.node_id is not None) == bool(fit)
    assert placement.node_id is None or placement.node_id in {c.node_id for c in fit}
    assert len(placement.turned_away) == len(fleet) - len(fit)


def test_a_node_without_the_lora_is_not_picked_however_idle_it_is():
    having = status(jobs=[job("other", 100)])
    having = having.model_copy(update={"models": [having.models[0].model_copy(update={"loras": ["ink", "detail"]})]})
    ask = Ask(MODEL, "generation", 10, loras=frozenset({"ink"}))

    placement = place(ask, [node("idle"), node("having", having)], depth=2)

    assert placement.node_id == "having"
    assert placement.turned_away == {"idle": "does not have the LoRA 'ink'"}
    assert place(ask, [node("idle")], depth=1).outlook is Outlook.NONE


def limited(too_large_px: int, fits_px: int) -> NodeStatus:
    """A node that has found out what its memory suffices for."""
    told = status()
    limits = {"generation": MemoryLimit(too_large_px=too_large_px, fits_px=fits_px)}
    return told.model_copy(update={"models": [told.models[0].model_copy(update={"memory_limits": limits})]})


def test_a_picture_too_large_for_a_nodes_memory_goes_to_another_however_busy():
    large = Ask(MODEL, "generation", 10, pixels=1_000_000)
    fleet = [node("small", limited(1_000_000, 600_000)), node("large", status(jobs=[job("other", 100)]))]

    placement = place(large, fleet, depth=2)

    assert (placement.node_id, placement.fits_px) == ("large", None)
    assert placement.turned_away == {"small": "has not the memory for more than 600,000 pixels"}
    assert place(Ask(MODEL, "generation", 10, pixels=999_999), fleet, depth=2).node_id == "small"


def test_where_it_fits_no_node_the_largest_that_would_is_known():
    large = Ask(MODEL, "generation", 10, pixels=2_000_000)

    placement = place(large, [node("a", limited(1_000_000, 600_000)), node("b", limited(2_000_000, 900_000))], depth=2)

    assert (placement.node_id, placement.outlook, placement.fits_px) == (None, Outlook.NONE, 900_000)
