"""A real node's state as a router hears it, from the first line to the last."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from common.node_api import JobPhase, NodePhase, NodeStatus
from common.state_lines import MEDIA_TYPE, StateReader
from tests.node.process import running_node

RUN = {"model": "sd15", "prompt": "a fox", "size": "256x256", "num_inference_steps": 30, "seed": 1}


def test_the_steps_of_a_run_are_told_and_a_node_that_stops_is_heard_until_the_run_has_ended(tiny: Path, tmp_path: Path):
    reader, said = StateReader(max_bytes=1_000_000), list[NodeStatus]()
    with running_node(tiny, tmp_path) as node, ThreadPoolExecutor(1) as pool, node.http() as client, node.http() as other:
        with client.stream("GET", "/node/v1/events") as told:
            run, stopping = None, False
            for content in told.iter_raw():
                if not reader.take(content) or reader.status is None:
                    continue
                said.append(reader.status)
                if run is None:
                    run = pool.submit(other.post, "/v1/images/generations", json=RUN)
                elif not stopping and reader.status.jobs and reader.status.jobs[0].step:
                    node.process.send_signal(signal.SIGTERM)
                    stopping = True
        assert run is not None
        answer = run.result(60)
        assert node.process.wait(60) == 0

    assert told.headers["content-type"].startswith(MEDIA_TYPE)
    assert answer.status_code == 200
    jobs = [status.jobs[0] for status in said if status.jobs]
    assert {job.phase for job in jobs} >= {JobPhase.LOADING, JobPhase.RUNNING}
    assert [job.step for job in jobs] == sorted(job.step for job in jobs)
    assert len({job.step for job in jobs}) > 5
    assert any(status.phase is NodePhase.DRAINING and status.jobs for status in said)
    assert (said[-1].phase, said[-1].jobs) == (NodePhase.DRAINING, [])
    assert said[-1].resident == ["sd15"]


def test_only_who_has_the_nodes_token_hears_its_state(tiny: Path, tmp_path: Path):
    with running_node(tiny, tmp_path) as node, node.http(None) as nobody, node.http("not-the-token") as another:
        answers: list[httpx.Response] = [client.get("/node/v1/events") for client in (nobody, another)]

    assert [answer.status_code for answer in answers] == [401, 401]
