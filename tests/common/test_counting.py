"""Our counters and histograms beside those of prometheus-client: the same events look the same to who scrapes."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from common.counting import Counted, Measured

BUCKETS = (0.05, 0.1, 1, 20, 600)
RUNS = st.none() | st.sampled_from(["run_1", 'run_"2\\'])
SECONDS = st.floats(0, 1000) | st.sampled_from([*BUCKETS, 0])
MODELS = st.sampled_from(["sd15", "猫", 'a "quoted" one'])


def shown(registry: CollectorRegistry) -> tuple[str, str]:
    """What is scraped, in both formats, without the moments in which series and exemplars began."""
    moment = re.compile(r"(?m)(_created(?:\{.*\})? |# \{.*\} \S+ )\S+$")
    return tuple(moment.sub(r"\1then", encode(registry).decode()) for encode in (generate_latest, generate_openmetrics))


@given(
    counted=st.lists(st.tuples(MODELS, st.sampled_from(["succeeded", "failed"]), st.integers(0, 4))),
    measured=st.lists(st.tuples(MODELS, SECONDS, RUNS)),
    alone=st.lists(SECONDS),
)
def test_a_scrape_shows_what_the_library_shows(
    counted: list[tuple[str, str, int]], measured: list[tuple[str, float, str | None]], alone: list[float]
):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    our_runs = Counted("runs", "Runs.", ["model", "outcome"], registry=ours)
    our_starts = Counted("starts", "Starts.", registry=ours)
    our_seconds = Measured("run_seconds", "Seconds.", ["model"], buckets=BUCKETS, registry=ours)
    our_waits = Measured("wait_seconds", "Waits.", buckets=BUCKETS, registry=ours)
    runs = Counter("runs", "Runs.", ["model", "outcome"], registry=theirs)
    starts = Counter("starts", "Starts.", registry=theirs)
    seconds = Histogram("run_seconds", "Seconds.", ["model"], buckets=BUCKETS, registry=theirs)
    waits = Histogram("wait_seconds", "Waits.", buckets=BUCKETS, registry=theirs)

    for model, outcome, by in counted:
        our_runs.count(model, outcome, by=by)
        runs.labels(model, outcome).inc(by)
        our_starts.count()
        starts.inc()
    for model, took_s, run_id in measured:
        our_seconds.observe(took_s, model, run_id=run_id)
        seconds.labels(model).observe(took_s, None if run_id is None else {"run_id": run_id})
    for took_s in alone:
        our_waits.observe(took_s)
        waits.observe(took_s)

    assert shown(ours) == shown(theirs)


def test_a_series_says_since_when_it_counts_and_its_exemplar_when_it_was_seen():
    registry = CollectorRegistry()
    Counted("starts", "Starts.", registry=registry)
    measured = Measured("run_seconds", "Seconds.", ["model"], buckets=BUCKETS, registry=registry)
    measured.observe(0.5, "sd15", run_id="run_1")

    (bucket,) = [each for family in registry.collect() for each in family.samples if each.exemplar is not None]
    assert bucket.labels == {"model": "sd15", "le": "1.0"}
    assert bucket.exemplar is not None
    since = registry.get_sample_value("run_seconds_created", {"model": "sd15"})
    assert since is not None
    assert registry.get_sample_value("starts_created") <= since <= bucket.exemplar.timestamp


def test_the_librarys_switch_for_what_a_series_was_created_at_is_ours_too():
    script = """
from prometheus_client import CollectorRegistry, generate_latest
from common.counting import Counted, Measured
registry = CollectorRegistry()
Counted("starts", "Starts.", registry=registry)
Measured("seconds", "Seconds.", buckets=(1,), registry=registry)
print(generate_latest(registry).decode())
"""
    environment = os.environ | {"PROMETHEUS_DISABLE_CREATED_SERIES": "True"}

    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True).stdout

    assert "seconds_count 0.0" in said
    assert "_created" not in said


@pytest.mark.parametrize("labels", [(), ("sd15", "failed", "more")], ids=["none", "one too many"])
def test_an_event_with_other_labels_than_were_named_is_a_mistake_of_ours(labels: tuple[str, ...]):
    registry = CollectorRegistry()

    with pytest.raises(ValueError, match="model, outcome"):
        Counted("runs", "Runs.", ["model", "outcome"], registry=registry).count(*labels)
    with pytest.raises(ValueError, match="model, outcome"):
        Measured("seconds", "Seconds.", ["model", "outcome"], buckets=BUCKETS, registry=registry).observe(1.0, *labels)


def test_no_two_metrics_have_one_name():
    registry = CollectorRegistry()
    Measured("seconds", "Seconds.", buckets=BUCKETS, registry=registry)

    with pytest.raises(ValueError, match="Duplicated"):
        Counted("seconds", "Seconds.", registry=registry)
