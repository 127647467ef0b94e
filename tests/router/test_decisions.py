"""Why a run went where it went: told to operators, kept with the run, bounded."""

import json
from typing import Any

import httpx
import pytest

from common.commands.explain import rows_of, tell
from router.decisions import DEBUG_HEADER, DECISION_HEADER, pick_of
from router.fleet import Fleet
from router.placement import Ask, Health
from tests.fakes.node import MODEL, Faults
from tests.router.conftest import USER_KEY, House, MakeHouse, MakeRouter, until
from tests.router.test_placement import node, status


async def explained(client: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    reply = await client.get(f"/v1/runs/{run_id}/decisions")
    assert reply.status_code == 200, reply.text
    data: list[dict[str, Any]] = reply.json()["data"]
    return data


async def test_a_decision_names_the_node_its_terms_who_was_turned_away_and_what_it_took(make_house: MakeHouse):
    house = await make_house("a", "b", "c", models={"c": ["another/model"]})
    house.nodes["b"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("b").health is Health.OFFLINE)

    reply = await house.generate(size="1000x1000", steps=3)

    [told] = await explained(house.client, reply.headers["x-run-id"])
    assert (told["attempt"], told["node"], told["predicted_s"]) == (1, "a", 3.0)
    assert told["terms_s"] == {"waiting": 0.0, "load": 0.0, "eviction": 0.0, "own": 3.0}
    assert told["turned_away"] == {"b": "offline"}
    assert told["without_the_model"] == 1
    assert 0 < told["took_s"] < 3


async def test_a_decision_outlives_its_router_and_each_attempt_has_its_own(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", "b")
    house.nodes["a"].faults = Faults("error_503", times=1)
    reply = await house.generate()
    await house.stop()

    client, _ = await another_router()
    told = await explained(client, reply.headers["x-run-id"])

    assert reply.status_code == 200
    assert [(each["attempt"], each["node"], each["took_s"] is None) for each in told] == [(1, "a", True), (2, "b", False)]
    assert told[1]["turned_away"] == {"a": "failed under this run before"}


async def test_operators_alone_are_told_and_answers_tell_it_when_asked(make_house: MakeHouse):
    house = await make_house("a")
    asked = {"json": {"prompt": "x", "model": MODEL}, "headers": {DEBUG_HEADER: "1"}}

    debugged = await house.client.post("/v1/images/generations", **asked)
    plain = await house.generate()
    asked["headers"] |= {"authorization": f"Bearer {USER_KEY}"}
    user = await house.client.post("/v1/images/generations", **asked)
    refused = await house.client.get(
        f"/v1/runs/{user.headers['x-run-id']}/decisions", headers={"authorization": f"Bearer {USER_KEY}"}
    )

    assert json.loads(debugged.headers[DECISION_HEADER])["node"] == "a"
    assert DECISION_HEADER not in plain.headers
    assert DECISION_HEADER not in user.headers
    assert refused.status_code == 403
    assert (await house.client.get("/v1/runs/run_none/decisions")).status_code == 404


async def test_what_predictions_were_worth_is_a_metric(make_house: MakeHouse):
    house: House = await make_house("a")

    await house.generate(size="1000x1000", steps=3)

    exposed = (await house.client.get("/metrics")).text
    assert 'aquatint_prediction_ratio_count{of="node"} 1.0' in exposed
    # It took a fraction of a second, and three were predicted.
    assert 'aquatint_prediction_ratio_bucket{le="0.25",of="node"} 1.0' in exposed


async def test_the_command_tells_it_to_people(make_house: MakeHouse, capsys: pytest.CaptureFixture[str]):
    house = await make_house("a")
    run_id = (await house.generate(size="1000x1000", steps=3)).headers["x-run-id"]
    decisions = await explained(house.client, run_id)
    capsys.readouterr()

    tell(decisions)
    tell([])

    shown = capsys.readouterr().out
    assert "attempt 1" in shown
    assert "generation, 1 picture(s), 3 megapixel-steps" in shown
    assert "never got as far as a node" in shown


def test_a_decision_is_small_and_picks_are_not_held_up_by_it_whatever_the_fleet():
    fleet = Fleet()
    for number in range(1000):
        fleet.put(
            node(f"n{number:04}", status(speed=1 + number / 1000), health=Health.DRAINING if number % 2 else Health.ONLINE)
        )
    ask = Ask("sdxl", "generation", units=10)

    pick = pick_of(fleet.place(ask, 0.0), ask, fleet, now_s=0.0, waited_s=0.0)
    told = pick.told()

    assert told["node"] == "n0000"
    assert [other["node"] for other in told["others"][:2]] == ["n0002", "n0004"]
    assert set(told["turned_away"].values()) == {"draining"}
    assert told["not_named"] + len(told["others"]) + len(told["turned_away"]) + 1 == 1000
    assert len(json.dumps(told)) < 8192


def test_the_table_shows_the_pick_then_the_next_best_then_those_turned_away():
    fleet = Fleet()
    for name, health, speed in [("slow", Health.ONLINE, 2.0), ("quick", Health.ONLINE, 1.0), ("gone", Health.OFFLINE, 1.0)]:
        fleet.put(node(name, status(speed=speed), health=health))
    ask = Ask("sdxl", "generation", units=10)
    told = pick_of(fleet.place(ask, 0.0), ask, fleet, now_s=0.0, waited_s=0.0).told() | {"took_s": 11.5}

    rows = rows_of(told)

    assert [(row["node"], row["why"]) for row in rows] == [
        ("quick", "picked"),
        ("slow", "would be done later"),
        ("gone", "turned away: offline"),
    ]
    assert (rows[0]["predicted"], rows[0]["took"], rows[1]["predicted"]) == (10.0, 11.5, 20.0)
