"""The pick, as a table of fleets."""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.node_api import DeviceStatus, JobPhase, JobStatus, MemoryLimit, ModelStatus, NodePhase, NodeStatus
from router.candidates import Kept, Known, Sent, candidate_of
from router.costs import Cost, CostBook, Learned
from router.fleet import Fleet
from router.placement import (
    Ask,
    Candidate,
    Health,
    Offer,
    Outlook,
    Placement,
    Terms,
    Want,
    place,
    refusal,
    residents_after,
    terms_of,
)

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


def node(name: str, told: NodeStatus | None = None, *, depth: int = 1, **changes: Any) -> Candidate:
    fields: dict[str, Any] = {"health": Health.ONLINE, "status": told or status(), "ours": {}, "sitting_out": {}}
    return candidate_of(Known(node_id=name, name=name, **(fields | changes)), depth=depth)


def pick(ask: Ask, fleet: Collection[Candidate], want: Want = lambda model: 1.0) -> Placement:
    return place(ask, fleet, now_s=0.0, want=want)


def finish_s(ask: Ask, candidate: Candidate) -> float:
    return terms_of(ask, candidate, now_s=0.0, want=lambda model: 1.0).finish_s


def sent(units: float) -> Sent:
    return Sent(Ask(MODEL, "generation", units), at_s=0.0)


def job(run_id: str, units: float, *, step: int = 0, steps: int = 0) -> JobStatus:
    return JobStatus(run_id=run_id, model=MODEL, phase=JobPhase.RUNNING, step=step, steps=steps, work_units=units)


ASK = Ask(MODEL, "generation", units=10)


def test_the_faster_node_is_picked():
    assert pick(ASK, [node("slow", status(speed=2)), node("fast", status(speed=0.5))]).node_id == "fast"


def test_a_fast_node_with_much_to_do_loses_to_a_slow_one_that_is_free():
    busy = status(speed=0.5, jobs=[job("other", 100)])

    assert pick(ASK, [node("fast", busy), node("slow", status(speed=2))]).node_id == "slow"


def test_a_cold_node_pays_for_its_load():
    cold = node("cold", status(models={MODEL: False}, load_s=30))
    warm = node("warm", status(jobs=[job("other", 20)]))

    assert pick(ASK, [cold, warm]).node_id == "warm"
    assert finish_s(ASK, cold) == 40


def test_work_that_is_half_done_counts_half():
    assert finish_s(ASK, node("a", status(jobs=[job("other", 20, step=10, steps=20)]))) == 20


def test_our_own_runs_count_once_whether_or_not_the_node_has_told_of_them():
    ours = {"r1": sent(20)}

    assert finish_s(ASK, node("a", status(), ours=ours)) == 30
    assert finish_s(ASK, node("a", status(jobs=[job("r1", 20)]), ours=ours)) == 30


def test_a_device_that_never_measured_anything_is_judged_by_its_kind():
    gpu = node("gpu", status(speed=None))
    cpu = node("cpu", status(speed=None, device=DeviceStatus(kind="cpu", name="", memory_total_bytes=0, memory_free_bytes=0)))

    assert pick(ASK, [cpu, gpu]).node_id == "gpu"


def test_every_node_that_is_turned_away_is_named_with_its_reason():
    fleet = [
        node("offline", health=Health.OFFLINE),
        node("draining", health=Health.DRAINING),
        node("starting", status(phase=NodePhase.STARTING)),
        node("other", status(models={"z-image": True})),
        node("tried"),
        node("sits-out", sitting_out={MODEL: "failed 3 times in a row"}),
    ]

    placement = pick(Ask(MODEL, "generation", 1, tried=frozenset({"tried"})), fleet)

    assert placement.node_id is None
    assert placement.turned_away == {
        "offline": "offline",
        "draining": "draining",
        "starting": "starting",
        "other": "does not have the model",
        "tried": "failed under this run before",
        "sits-out": "failed 3 times in a row",
    }


def test_the_outlook_is_the_best_that_any_node_offers():
    full, away, never = (
        node("a", status(jobs=[job("x", 1), job("y", 1)])),
        node("b", health=Health.ERROR),
        node("c", status(models={})),
    )

    assert pick(ASK, [full, away, never]).outlook is Outlook.FULL
    assert pick(ASK, [away, never]).outlook is Outlook.AWAY
    assert pick(ASK, [never]).outlook is Outlook.NONE
    assert pick(ASK, []).outlook is Outlook.NONE


def test_a_run_waits_for_a_full_node_that_will_be_quicker_than_a_free_one():
    full = node("full", status(jobs=[job("x", 1), job("y", 1)]))
    cold = node("cold", status(models={MODEL: False}, load_s=30))

    placement = pick(ASK, [full, cold])

    assert (placement.node_id, placement.has_place) == ("full", False)


def crowded(name: str, resident: str) -> Candidate:
    """A node with room for one model, which is `resident`."""
    return node(name, status(models={MODEL: False, resident: True}, load_s=30, max_resident=1, resident=[resident]))


def test_what_nobody_wants_leaves_before_what_others_want():
    fleet = [crowded("a", "wanted"), crowded("b", "idle")]

    placement = pick(ASK, fleet, want=lambda model: 1.0 if model == "wanted" else 0.0)

    assert placement.node_id == "b"
    assert placement.terms == Terms(waiting_s=0, load_s=30, eviction_s=0, own_s=10)
    assert pick(ASK, fleet[:1]).terms == Terms(waiting_s=0, load_s=30, eviction_s=30, own_s=10)


def test_pinned_models_are_taken_to_stay():
    told = status(models={MODEL: False, "old": True, "new": True}, max_resident=2, resident=["old", "new"], pinned=["old"])

    assert residents_after([MODEL], node("a", told)) == ("old", MODEL)


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.sampled_from([None, 1, 2, 3]))
def test_what_was_used_last_is_last_and_those_that_stay_keep_their_order(ran: list[str], fits: int | None):
    candidate = node("n", status(models={"a": True, "b": True, "c": True, "d": False}, resident=["b", "a"], max_resident=fits))

    before = candidate.resident
    for count in range(1, len(ran) + 1):
        after = residents_after(ran[:count], candidate)
        assert after[-1] == ran[count - 1]
        assert list(after[:-1]) == [each for each in before if each in after[:-1]]
        assert ran[count - 1] not in before or set(after) == set(before)
        before = after


def test_a_node_with_other_work_is_else_the_same():
    candidate = Candidate(**{each.name: object() for each in fields(Candidate)})  # type: ignore[arg-type]
    work: dict[str, Any] = {"held": 2, "free_at_s": 5.0, "floor_s": 1.0, "resident": (MODEL,)}

    assert candidate.doing(**work) == replace(candidate, **work)


def test_weights_that_do_not_fit_are_not_sent_there():
    told = status(models={MODEL: False}, budget_bytes=10)
    told = told.model_copy(update={"models": [told.models[0].model_copy(update={"memory_bytes": 11})]})

    assert pick(ASK, [node("a", told)]).turned_away == {"a": "the weights need 11 bytes of 10"}


def test_a_run_that_is_late_is_waited_for_ever_less():
    busy = node("a", status(jobs=[job("x", 10), job("y", 5)]))

    assert [busy.wait_s(now_s) for now_s in (0, 5, 15, 25)] == [15, 10, 5.5, 15.5]


def test_a_run_that_the_node_tells_of_no_more_has_left_its_device():
    told = {"r1": Sent(Ask(MODEL, "generation", 10.0), at_s=0.0, told=True)}

    crossing = node("a", status(jobs=[job("other", 4)]), ours={"r1": sent(10)})
    left = node("a", status(jobs=[job("other", 4)]), ours=told)
    there = node("a", status(jobs=[job("other", 4), job("r1", 10)]), ours=told)

    assert [(each.held, each.wait_s(0)) for each in (crossing, left, there)] == [(2, 14), (1, 4), (2, 14)]


def test_equal_nodes_take_turns_as_they_fill():
    first = pick(ASK, [node("a"), node("b")])
    second = pick(ASK, [node("a", ours={"r1": sent(10)}), node("b")])

    assert (first.node_id, second.node_id) == ("a", "b")


@given(
    healths=st.lists(st.sampled_from(Health), max_size=6),
    held=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    depth=st.integers(0, 2),
)
def test_no_run_goes_to_a_node_that_is_not_well_or_is_full(healths: list[Health], held: list[int], depth: int):
    fleet = [
        node(str(i), health=health, depth=depth, ours={f"{i}.{k}": sent(1) for k in range(held[i])})
        for i, health in enumerate(healths)
    ]

    placement = pick(ASK, fleet)

    well = [c for c in fleet if c.away is None]
    assert {c.name for c in well} == {str(i) for i, health in enumerate(healths) if health is Health.ONLINE}
    assert (placement.node_id is not None) == bool(well)
    if placement.node_id is not None:
        assert placement.has_place == (held[int(placement.node_id)] < 1 + depth)
    else:
        assert len(placement.turned_away) == len(fleet)


candidates = st.builds(
    lambda name, pace, load_s, resident, work_s, held, away, loras: Candidate(
        name,
        name,
        {model: Offer(frozenset({"generation"}), pace, load_s, 4, loras=loras) for model in (MODEL, "b", "c")},
        2,
        held=held,
        free_at_s=work_s if held else 0.0,
        floor_s=work_s / 2 if held else 0.0,
        resident=tuple(resident),
        budget_bytes=9,
        away=away,
    ),
    st.text("xyz", min_size=1),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 5.0]),
    st.lists(st.sampled_from([MODEL, "b", "c"]), max_size=2, unique=True),
    st.sampled_from([0.0, 4.0, 20.0]),
    st.integers(0, 2),
    st.sampled_from([None, None, "draining"]),
    st.sampled_from([frozenset(), frozenset({"ink"})]),
)


@given(
    fleet=st.lists(candidates, max_size=6, unique_by=lambda each: each.node_id),
    loras=st.sampled_from([frozenset(), frozenset({"ink"})]),
    tried=st.frozensets(st.text("xyz", min_size=1, max_size=1), max_size=2),
)
def test_the_pick_is_the_least_of_what_the_terms_add_up_to(
    fleet: list[Candidate], loras: frozenset[str], tried: frozenset[str]
):
    ask = Ask(MODEL, "generation", 3, loras=loras, tried=tried)
    costs = {
        each.node_id: terms_of(ask, each, now_s=1.0, want=lambda model: 0.5).cost_s
        for each in fleet
        if refusal(ask, each) is None
    }

    placement = place(ask, fleet, now_s=1.0, want=lambda model: 0.5)

    if placement.node_id is None:
        assert not costs
    else:
        assert costs[placement.node_id] == min(costs.values())


def test_a_node_without_the_lora_is_not_picked_however_idle_it_is():
    having = status(jobs=[job("other", 100)])
    having = having.model_copy(update={"models": [having.models[0].model_copy(update={"loras": ["ink", "detail"]})]})
    ask = Ask(MODEL, "generation", 10, loras=frozenset({"ink"}))

    placement = pick(ask, [node("idle"), node("having", having)])

    assert placement.node_id == "having"
    assert refusal(ask, node("idle")) == (Outlook.NONE, "does not have the LoRA 'ink'")
    assert pick(ask, [node("idle")]).outlook is Outlook.NONE


def limited(too_large_px: int, fits_px: int) -> NodeStatus:
    """A node that has found out what its memory suffices for."""
    told = status()
    limits = {"generation": MemoryLimit(too_large_px=too_large_px, fits_px=fits_px)}
    return told.model_copy(update={"models": [told.models[0].model_copy(update={"memory_limits": limits})]})


def test_a_picture_too_large_for_a_nodes_memory_goes_to_another_however_busy():
    large = Ask(MODEL, "generation", 10, pixels=1_000_000)
    fleet = [node("small", limited(1_000_000, 600_000)), node("large", status(jobs=[job("other", 100)]))]

    placement = pick(large, fleet)

    assert (placement.node_id, placement.fits_px) == ("large", None)
    assert refusal(large, fleet[0]) == (Outlook.NONE, "has not the memory for more than 600,000 pixels")
    assert pick(Ask(MODEL, "generation", 10, pixels=999_999), fleet).node_id == "small"


def test_where_it_fits_no_node_the_largest_that_would_is_known():
    large = Ask(MODEL, "generation", 10, pixels=2_000_000)

    placement = pick(large, [node("a", limited(1_000_000, 600_000)), node("b", limited(2_000_000, 900_000))])

    assert (placement.node_id, placement.outlook, placement.fits_px) == (None, Outlook.NONE, 900_000)


def test_a_candidate_made_from_what_was_kept_is_the_same_as_one_made_anew():
    told = status(models={MODEL: True, "other": False})
    moved = status(models={MODEL: False, "other": True}, jobs=[job("run_3", 4.0)])
    learned = {MODEL: Learned({"": Cost(2.0)}, 7.0)}
    steps: list[dict[str, Any]] = [
        {"status": told},
        {"ours": {"run_1": sent(5.0)}},
        {"ours": {"run_1": sent(5.0), "run_2": sent(9.0)}, "said_at_s": 3.0},
        {"status": told.model_copy(update={"jobs": [job("run_1", 5.0, step=1, steps=2)]})},
        {"status": told.model_copy(update={"phase": NodePhase.DRAINING, "expected": 1})},
        {"learned": learned, "status": told, "full": True},
        {"sitting_out": {MODEL: "failed 3 times in a row"}},
        {"health": Health.OFFLINE},
        {"health": Health.ONLINE, "sitting_out": {}},
        {"status": moved, "ours": {}},
        {"status": None},
        {"status": told, "learned": {}},
    ]
    known = Known(node_id="a", name="a", health=Health.ONLINE, status=told, ours={}, sitting_out={})
    kept = Kept()

    for step in steps:
        known = replace(known, **step)
        assert candidate_of(known, depth=1, kept=kept) == candidate_of(known, depth=1), step


CHANGES: list[dict[str, Any]] = [
    {"version": "1"},
    {"device": DeviceStatus(kind="cpu", name="gpu", memory_total_bytes=1, memory_free_bytes=1)},
    {"device": DeviceStatus(kind="cuda", name="another", memory_total_bytes=1, memory_free_bytes=1)},
    {"seconds_per_unit": {}},
    {"load_s": {MODEL: 9.0}},
    {"max_concurrency": 3},
    {"max_queued": 0},
    {"resident": ["other", MODEL]},
    {"pinned": [MODEL]},
    {"budget_bytes": 5},
    {"max_resident": 1},
    {"phase": NodePhase.DRAINING},
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_node_says_anew_is_seen_though_its_models_are_the_same(change: dict[str, Any]):
    told, kept = status(models={MODEL: True, "other": True}), Kept()
    before = Known(node_id="a", name="a", health=Health.ONLINE, status=told, ours={}, sitting_out={})
    after = replace(before, status=told.model_copy(update=change))
    candidate_of(before, depth=1, kept=kept)

    assert candidate_of(after, depth=1, kept=kept) == candidate_of(after, depth=1) != candidate_of(before, depth=1)


def test_what_a_node_offers_is_not_made_anew_for_its_jobs():
    told, kept = status(), Kept()
    idle = Known(node_id="a", name="a", health=Health.ONLINE, status=told, ours={}, sitting_out={})
    busy = replace(idle, ours={"run_1": sent(5.0)}, status=told.model_copy(update={"jobs": [job("run_2", 1.0)]}))

    assert candidate_of(busy, depth=1, kept=kept).offers is candidate_of(idle, depth=1, kept=kept).offers


def test_a_node_of_which_nothing_is_learned_is_not_made_anew_for_each_run_that_it_takes_on():
    kept, book = Kept(), CostBook()
    known = Known(node_id="a", name="a", health=Health.ONLINE, status=status(), ours={}, sitting_out={})

    first, second = (candidate_of(replace(known, learned=book.of("a")), depth=1, kept=kept) for _ in range(2))

    assert first.offers is second.offers


PACES = st.tuples(
    st.sampled_from([0.5, 1.0, 2.0]), st.none() | st.builds(Cost, st.sampled_from([0.1, 1.5]), st.sampled_from([0.0, 4.0]))
)


@given(st.lists(PACES, min_size=1, max_size=5))
def test_order_goes_by_what_a_run_needs_on_the_quickest_node_that_has_its_model(paces: list[tuple[float, Cost | None]]):
    fleet, ask = Fleet(), Ask(MODEL, "generation", 3.0, pictures=2, kind="generation@0")
    offers = [Offer(frozenset(), pace, 9.0, costs={} if cost is None else {ask.kind: cost}) for pace, cost in paces]
    for number, offer in enumerate(offers):
        fleet.put(Candidate(f"n{number}", f"n{number}", {MODEL: offer}, 1))

    assert fleet.work_s(ask) == min(offer.own_s(ask) for offer in offers)
