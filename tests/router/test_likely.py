"""What work costs where nobody has measured it yet, by what it cost elsewhere."""

import math
import statistics

import pytest

from common.node_api import UNKNOWN, DeviceStatus, LoadTook, NodeStatus
from router.candidates import PRIOR_LOAD_S, PRIOR_PACE
from router.costs import Cost, CostBook, Device, Learned, kind_of
from router.fleet import Fleet
from router.forecast import Forecast, Foreseen
from router.likely import COMPARE_EVERY_S, Likely, likely_costs
from router.line import Waiting
from router.placement import Ask, Candidate, Offer
from tests.fakes.node import MODEL
from tests.router.conftest import MakeHouse, until
from tests.router.test_costs import took
from tests.router.test_placement import node, status

KIND = kind_of("generation", 0)
QUICK, SLOW, OTHER = Device("cuda", "quick"), Device("cuda", "slow"), Device("cuda", "other")
COMPUTER = Device("cpu", "CPU, 8 cores")


def measured(load_s: float | None = None, **step_s: float) -> dict[str, Learned]:
    """By model."""
    return {model: Learned({KIND: Cost(each, 2 * each)}, load_s) for model, each in step_s.items()}


def costs_of(learned: Learned) -> tuple[float, float]:
    """Seconds of a step and of a picture."""
    return learned.costs[KIND].step_s, learned.costs[KIND].picture_s


def told_by(device: Device, **changes: object) -> NodeStatus:
    shown = DeviceStatus(kind=device.kind, name=device.name, memory_total_bytes=1, memory_free_bytes=1)
    return status(models={"a": True, "b": True}, speed=None).model_copy(update={"device": shown, **changes})


def seen_at(book: CostBook, likely: Likely, node_id: str, told: NodeStatus) -> Candidate:
    """The node as placement sees it."""
    return node(node_id, told, learned=book.of(node_id), likely=likely.of(book.device(node_id), math.inf))


def test_what_was_measured_on_the_same_device_is_likely_there():
    told = likely_costs(QUICK, {QUICK: measured(30.0, a=0.1), SLOW: measured(60.0, a=0.4)})

    assert told == measured(30.0, a=0.1)


def test_what_was_measured_elsewhere_is_scaled_by_the_work_that_both_have_done():
    quick, slow = measured(10.0, a=0.1, b=0.2, c=0.5), measured(30.0, a=0.3, b=0.6)

    told = likely_costs(SLOW, {QUICK: quick, SLOW: slow})

    assert costs_of(told["c"]) == pytest.approx((1.5, 3.0))
    assert told["c"].load_s == pytest.approx(30.0)
    assert {model: told[model] for model in slow} == slow


def test_what_nothing_is_shared_with_is_scaled_by_the_priors_and_its_loads_are_not():
    told = likely_costs(COMPUTER, {QUICK: measured(30.0, a=0.05)})

    assert costs_of(told["a"])[0] == pytest.approx(0.05 * PRIOR_PACE["cpu"] / PRIOR_PACE["cuda"])
    assert told["a"].load_s == pytest.approx(30.0)


def test_devices_that_share_work_say_more_than_those_of_one_kind_and_those_more_than_the_rest():
    known = {COMPUTER: measured(a=4.0, c=8.0), QUICK: measured(b=0.1, c=7.0, d=3.0), SLOW: measured(a=0.4)}

    told = likely_costs(SLOW, known)

    assert costs_of(told["c"])[0] == pytest.approx(0.8)
    assert costs_of(told["d"])[0] == pytest.approx(3.0)
    assert costs_of(told["b"])[0] == pytest.approx(0.1)


def test_of_devices_that_say_as_much_the_mean_is_gone_by_and_more_shared_work_weighs_more():
    known = {QUICK: measured(a=0.1, c=0.2), OTHER: measured(a=0.1, b=0.1, c=1.6), SLOW: measured(a=0.1, b=0.1)}

    told = likely_costs(SLOW, known)

    assert costs_of(told["c"])[0] == pytest.approx(0.8)


def test_where_only_a_load_was_measured_the_work_is_taken_from_elsewhere():
    told = likely_costs(SLOW, {SLOW: {"a": Learned({}, 12.0)}, QUICK: measured(30.0, a=0.1)})

    assert (costs_of(told["a"]), told["a"].load_s) == (pytest.approx((0.1, 0.2)), 12.0)


SECONDS = {
    "2080 Ti": (10.2, 4.7),
    "3090": (7.0, 1.4),
    "4090": (3.4, 0.7),
    "T4": (26.5, 8.4),
    "A100": (3.8, 1.2),
    "M1 Max": (64.0, 6.5),
    "CPU": (219.0, 29.0),
}
"""Of SDXL in 25 steps and of SDXL with LCM-LoRA in 4, as the latter's authors published them (Hugging Face, November 2023)."""


def test_of_published_figures_what_is_likely_is_far_nearer_than_what_priors_say():
    kinds = {"M1 Max": "mps", "CPU": "cpu"}
    devices = {name: Device(kinds.get(name, "cuda"), name) for name in SECONDS}
    known = {devices[name]: measured(sdxl=sdxl_s / 25, lcm=lcm_s / 4) for name, (sdxl_s, lcm_s) in SECONDS.items()}
    off, off_by_priors = [], []

    for device, learned in known.items():
        fresh = known | {device: {"sdxl": learned["sdxl"]}}
        real_s = costs_of(learned["lcm"])[0]
        off.append(_off(costs_of(likely_costs(device, fresh)["lcm"])[0], real_s))
        off_by_priors.append(_off(PRIOR_PACE[device.kind], real_s))

    assert statistics.median(off) < 1.6
    assert max(off) < 2.5
    assert statistics.median(off_by_priors) > 2.9
    assert max(off_by_priors) > 20.0


def _off(told_s: float, real_s: float) -> float:
    return max(told_s / real_s, real_s / told_s)


def test_of_a_node_that_is_new_is_foreseen_what_comes_true():
    """Its first run of a model: the truth is three times what the other device took, as of the model both have done."""
    book = CostBook()
    loads = [LoadTook(id=model, model=model, load_s=45.0) for model in "ab"]
    runs = [took(i, 0.3, model="a") for i in range(3)] + [took(9 + i, 0.6, picture_s=1.0, model="b") for i in range(3)]
    book.hear("old", told_by(QUICK, runs_took=runs, loads_took=loads))
    fresh = told_by(SLOW, runs_took=[took(20 + i, 0.9, model="a") for i in range(3)])
    fresh = fresh.model_copy(update={"models": [each.model_copy(update={"resident": False}) for each in fresh.models]})
    book.hear("new", fresh)
    run = Ask("b", "generation", 20.0, pictures=1, kind=KIND)

    before = _foreseen(run, node("new", fresh, learned=book.of("new")))
    after = _foreseen(run, seen_at(book, Likely(book), "new", fresh))

    really_s = 45.0 + 3 * (0.6 * 20.0 + 1.0)
    assert after.finish_s == pytest.approx(really_s, rel=0.01)
    assert before.finish_s == pytest.approx(PRIOR_LOAD_S + PRIOR_PACE["cuda"] * 20.0)
    # It is foreseen, and it is a guess: nobody is refused for it.
    assert not after.sure


def _foreseen(run: Ask, candidate: Candidate) -> Foreseen:
    fleet = Fleet()
    fleet.put(candidate)
    return Forecast().play([Waiting(run, 0.0, 1.0)], fleet, 0.0)[0]


def test_what_a_node_has_measured_itself_is_what_counts():
    book = CostBook()
    book.hear("old", told_by(QUICK, runs_took=[took(1, 0.5, model="a"), took(2, 0.5, model="b")]))
    mine = told_by(QUICK, runs_took=[took(3, 2.0, model="a")], seconds_per_unit={"b": 4.0}, load_s={"a": 8.0, "b": 9.0})
    book.hear("new", mine)

    offers = seen_at(book, Likely(book), "new", mine).offers

    assert [offers[model].own_s(Ask(model, "generation", 1.0, kind=KIND)) for model in "ab"] == pytest.approx([2.0, 4.0])
    assert (offers["b"].load_s, offers["a"].guessed, offers["b"].guessed) == (9.0, False, False)


def test_a_device_is_known_by_what_the_catalog_kept_of_its_nodes():
    before = CostBook()
    before.hear("old", told_by(QUICK, runs_took=[took(i, 0.5, model="a") for i in range(3)]))

    book = CostBook(before.changes())
    book.hear("old", told_by(QUICK))
    book.hear("new", told_by(QUICK))

    assert Likely(book).of(QUICK, 0.0)["a"].costs == before.of("old")["a"].costs


def test_a_node_whose_worker_has_not_started_tells_nothing_of_any_device():
    book = CostBook()
    book.hear("one", told_by(Device(UNKNOWN, "not yet"), runs_took=[took(1, 0.5, model="a")]))

    assert (book.device("one"), book.by_device(), Likely(book).of(book.device("one"), 0.0)) == (None, {}, {})


def test_devices_are_compared_anew_when_what_is_known_has_doubled_and_not_at_each_run():
    book, runs = CostBook(), [took(i, 0.5, model="a") for i in range(64)]
    likely, shown, now_s = Likely(book), [], 0.0
    for count in range(1, 65):
        book.hear("one", told_by(QUICK, runs_took=runs[:count]))
        now_s += COMPARE_EVERY_S
        shown.append(likely.of(SLOW, now_s))
        assert likely.of(SLOW, now_s) is shown[-1]

    assert 6 <= len({id(each) for each in shown}) <= 8


async def test_a_router_takes_what_one_node_measured_for_another_that_says_nothing_new(make_house: MakeHouse):
    house = await make_house("a", "b")
    registry = house.services.registry

    def guess() -> Offer:
        return registry.fleet.candidates[registry.get("b").id].offers[MODEL]

    house.nodes["b"].paces = {}
    await until(lambda: guess().guessed)
    house.nodes["a"].runs_took = [took(i, 0.25, picture_s=0.5, model=MODEL) for i in range(4)]

    await until(lambda: guess().own_s(Ask(MODEL, "generation", 10.0, kind=KIND)) == pytest.approx(10 * 0.25 + 0.5))
    assert guess().guessed
