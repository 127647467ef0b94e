"""What `aquatint bench placement` measures beside its simulations: picks, and real processes before nodes that tell what nodes
tell."""

import httpx

from common.node_api import RUN_ID_HEADER, NodeStatus
from router.bench.paced_node import MODELS, STEP_S, PacedNode, build_node
from router.bench.pacing import AT_NODES, Run, jain, shares_s
from router.bench.picking import NODES, measure_picks
from tests.serving import served


async def test_a_paced_node_tells_what_its_runs_and_loads_took():
    async with served(build_node(PacedNode(speed=100, fits=1, load_s=0.01))) as url, httpx.AsyncClient(base_url=url) as client:
        for number, model in enumerate((MODELS[0], MODELS[0], MODELS[1])):
            asked = {"model": model, "size": "1000x1000", "num_inference_steps": 4}
            headers = {RUN_ID_HEADER: f"run_{number}"}
            (await client.post("/v1/images/generations", json=asked, headers=headers)).raise_for_status()
        told = NodeStatus.model_validate((await client.get("/node/v1/status")).json())

    assert [(each.run_id, each.work_units) for each in told.runs_took] == [("run_0", 4.0), ("run_1", 4.0), ("run_2", 4.0)]
    assert all(each.steps_s >= 4 * STEP_S / 100 for each in told.runs_took)
    assert [each.model for each in told.loads_took] == list(MODELS)
    assert (told.resident, told.jobs) == ([MODELS[1]], [])


def test_a_pick_among_a_thousand_nodes_takes_no_more_than_a_millisecond():
    told = measure_picks()

    assert {(row["nodes"], row["busy"]) for row in told} == {(n, b) for n in NODES for b in ("none", "half", "all")}
    # The best of many: what else the machine does makes picks longer, never shorter.
    assert max(row["best_ms"] for row in told) <= 1.0


def test_keys_that_got_the_same_have_an_index_of_one():
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert round(jain([9.0, 0.0, 0.0]), 3) == 0.333


def test_shares_are_of_the_time_when_all_keys_had_runs_in_line():
    many, few = [_ended("many", at_s) for at_s in range(1, 9)], [_ended("few", at_s + 0.5) for at_s in range(1, 9)]
    offered = {"many": 100, "few": AT_NODES + 5}

    got_s = shares_s({"many": many, "few": few}, offered, began_s=2.0)

    # Of those that few sent, the fifth to end, at 5.5, leaves no more than nodes may hold.
    assert got_s == {"many": 3 * 2.0, "few": 4 * 2.0}


def _ended(key: str, done_at_s: float) -> Run:
    return Run("run_1", key, work_s=2.0, took_s=1.0, eta_s=1.0, done_at_s=done_at_s)
