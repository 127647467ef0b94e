"""`aquatint bench router`: it measures what it says, and what it must find whatever the machine."""

import json
import subprocess
import sys

COMMAND = "import typer; from router.bench.command import router; typer.run(router)"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, timeout=280, check=False)


def test_one_request_is_begun_once_whatever_its_node_does_and_every_answer_is_whole():
    told = bench("--alone", "--rounds", "1", "--share", "0.01", "--cells", "20 KB x 1,6 MB", "--json")

    assert told.returncode == 0, told.stderr
    figures = json.loads(told.stdout)
    assert [(row["load"], row["target"], row["bad"]) for row in figures["costs"]] == [
        ("20 KB x 1", "aquatint", 0),
        ("6 MB x 64", "aquatint", 0),
    ]
    assert all(row["cpu_ms"] > 0 and row["peak_mb"] > 10 for row in figures["costs"])
    (behaviour,) = figures["behaviour"]
    assert (behaviour["asks_on_reset"], behaviour["starts_on_reset"], behaviour["starts_on_503"]) == (1, 1, 0)
    assert behaviour["told_after_ms"] is not None
    assert behaviour["event_delay_ms"] is not None
    assert behaviour["stalled_readers_mb"] < 100
    assert "each run is committed within 20 ms of being sent" in figures["setup"]


def test_a_load_that_does_not_exist_is_answered_with_those_that_do():
    told = bench("--cells", "9 GB")

    assert told.returncode == 2
    assert "1.4 MB x 32" in told.stderr
