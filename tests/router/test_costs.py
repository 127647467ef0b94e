"""What work costs, learned: outliers, changes, sizes, and what a router that starts knows of it."""

from random import Random

from common.node_api import JobPhase, JobStatus, LoadTook, RunTook
from router.costs import STEP, Cost, CostBook, Costs, Level, bucket_of, kind_of
from router.placement import Ask
from tests.fakes.node import MODEL
from tests.router.conftest import MakeHouse, MakeRouter, until
from tests.router.test_placement import finish_s, node, status

NODE = "node_1"


def took(
    number: int,
    step_s: float,
    *,
    picture_s: float = 0.0,
    side: int = 1024,
    steps: int = 20,
    pictures: int = 1,
    model: str = "sdxl",
    work: str = "generation",
) -> RunTook:
    units = side * side / 1e6 * steps * pictures
    return RunTook(
        run_id=f"run_{number}",
        model=model,
        work=work,
        pixels=side * side,
        pictures=pictures,
        work_units=units,
        steps_s=units * step_s,
        rest_s=picture_s * pictures,
    )


def learned(*runs: RunTook, loads: tuple[LoadTook, ...] = ()) -> CostBook:
    book = CostBook()
    book.hear(NODE, status(runs_took=list(runs), loads_took=list(loads)))
    return book


def level_of(*measured_s: float) -> Level:
    first, *rest = measured_s
    estimate = Level.first(first)
    for each in rest:
        estimate = estimate.after(each)
    return estimate


def test_one_run_of_fifty_times_the_length_changes_an_estimate_by_less_than_a_tenth():
    noise = Random(1)
    usual = [2.0 * noise.uniform(0.9, 1.1) for _ in range(30)]

    before, after = level_of(*usual).seconds, level_of(*usual, 100.0).seconds

    assert abs(before / 2.0 - 1) < 0.05
    assert after < before * 1.1


def test_a_lasting_change_is_followed_within_a_dozen_runs():
    estimate = level_of(*[2.0] * 30)

    for _ in range(12):
        estimate = estimate.after(4.0)

    assert abs(estimate.seconds / 4.0 - 1) < 0.15


def test_a_first_run_that_warmed_up_is_forgotten_with_the_second():
    assert level_of(14.0, 2.0).seconds == level_of(2.0).seconds


def test_what_each_picture_takes_besides_is_not_multiplied_with_its_steps():
    book = learned(*(took(i, 0.1, picture_s=1.0, steps=20) for i in range(3)))
    few, many = (Ask("sdxl", "generation", units, kind=kind_of("generation", 0)) for units in (4.0, 40.0))

    candidate = node("a", status(speed=0.15), learned=book.of(NODE))

    assert abs(finish_s(few, candidate) - 1.4) < 1e-6
    assert abs(finish_s(many, candidate) - 5.0) < 1e-6


def test_sizes_are_learned_apart_and_one_that_was_not_seen_costs_as_its_neighbour():
    book = learned(took(1, 0.4, side=512), took(2, 0.1, side=1536))
    costs = Costs(book.of(NODE)["sdxl"].costs, Cost(9.0))

    seen = [round(costs[kind_of("generation", bucket_of(side * side))].step_s, 6) for side in (512, 640, 1280, 1536)]
    other = costs[kind_of("edit", bucket_of(512 * 512))]

    assert seen == [0.4, 0.4, 0.1, 0.1]
    assert round(other.step_s, 6) == 0.4
    assert Costs({}, Cost(9.0))[kind_of("generation", 0)].step_s == 9.0


def test_what_a_node_repeats_is_taken_in_once_and_written_once():
    book = learned(took(1, 0.1), took(2, 0.1))
    book.hear(NODE, status(runs_took=[took(1, 0.1), took(2, 0.1), took(3, 0.1)]))

    first = book.changes()
    book.written(first)

    assert {each.count for each in first if each.term == STEP} == {3}
    assert book.changes() == []
    book.hear(NODE, status(runs_took=[took(4, 0.1)]))
    assert len(book.changes()) == len(first)


def test_what_is_learned_while_the_catalog_writes_is_written_the_next_time():
    book = learned(took(1, 0.1))
    writing = book.changes()
    book.hear(NODE, status(runs_took=[took(2, 0.1)]))

    book.written(writing)

    assert len(book.changes()) == len(writing)


def test_loads_are_learned_and_one_that_is_under_way_is_nearer_its_end():
    book = learned(loads=tuple(LoadTook(id=str(i), model="sdxl", load_s=30.0) for i in range(3)))
    cold = status(models={"sdxl": False})
    job = JobStatus(run_id="r", model="sdxl", phase=JobPhase.LOADING, work_units=10, loading_s=20.0)

    idle = node("a", cold, learned=book.of(NODE))
    loading = node("b", cold.model_copy(update={"jobs": [job]}), learned=book.of(NODE))

    ask = Ask("sdxl", "generation", 10)
    assert round(finish_s(ask, idle)) == 30 + 10
    # Ten seconds of its load are left and ten of its run; the model is there for the next.
    assert round(finish_s(ask, loading)) == 10 + 10 + 10


async def test_a_router_that_starts_knows_what_others_learned(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a")
    house.nodes["a"].runs_took = [took(i, 0.25, picture_s=0.5, model=MODEL) for i in range(4)]
    request = {"prompt": "x", "size": "1024x1024", "num_inference_steps": 10, "dry_run": True}

    def costs_known() -> bool:
        return bool(house.services.registry.costs.of(house.services.registry.get("a").id))

    await until(costs_known)
    before = (await house.client.post("/v1/images/generations", json=request)).json()
    await house.stop()
    house.nodes["a"].runs_took = []
    client, _ = await another_router()
    after = (await client.post("/v1/images/generations", json=request)).json()

    assert before["gpu_seconds"] == after["gpu_seconds"] == round(1.048576 * 10 * 0.25 + 0.5, 3)
