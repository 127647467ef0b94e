"""`aquatint top` shows what the router says, and nothing that it does not."""

from typing import Any

from rich.console import Console

from common.commands.top import Look, frame


def _node(name: str, **more: Any) -> dict[str, Any]:
    device = {"kind": "cuda", "name": "H100", "memory_total_bytes": 80_000_000_000, "memory_free_bytes": 20_000_000_000}
    return {"name": name, "state": "online", "error": None, "device": device, "models": [], "jobs": []} | more


def _shown(now: Look, before: Look | None = None) -> list[str]:
    console = Console(width=180, record=True, file=None, quiet=False)
    with console.capture() as caught:
        console.print(frame(now, before))
    return [line.rstrip() for line in caught.get().splitlines()]


def test_each_node_is_shown_with_what_it_holds_and_makes():
    jobs = [
        {"run_id": "r1", "model": "sdxl", "phase": "running", "step": 7, "steps": 28, "work_units": 1.0},
        {"run_id": "r2", "model": "sdxl", "phase": "queued", "step": 0, "steps": 28, "work_units": 1.0},
    ]
    models = [{"id": "sdxl", "resident": True, "unavailable": None}, {"id": "flux", "resident": False, "unavailable": None}]

    lines = _shown(Look(0.0, [_node("gpu1", models=models, jobs=jobs)]))

    (row,) = [line for line in lines if line.startswith("gpu1")]
    assert "online" in row
    assert "60.0/80 GB" in row
    assert "sdxl ███░░░░░░░░░ 7/28, +1 queued" in row
    assert "flux" not in row


def test_a_node_that_was_never_reached_shows_why():
    node = _node("gpu2", device=None, state="offline", error="unreachable: [Errno 111]")

    lines = _shown(Look(0.0, [node]))

    assert lines[0].startswith("0 of 1 nodes online")
    assert any(line.startswith("gpu2") and "unreachable: [Errno 111]" in line for line in lines)


def test_runs_a_minute_are_counted_between_two_looks():
    before, now = Look(100.0, ended={"succeeded": 10.0}), Look(110.0, waiting=3, predicted_s=41.6, ended={"succeeded": 15.0})

    assert _shown(now, before)[0] == "0 of 0 nodes online   3 waiting, 42 s predicted   30 runs a minute   15 succeeded"


def test_a_router_that_was_started_anew_counts_from_nothing():
    assert Look(110.0, ended={"succeeded": 2.0}).per_minute(Look(100.0, ended={"succeeded": 10.0})) == 0.0
