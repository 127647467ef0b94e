"""Lines of the log: one JSON object each, from our own code and from libraries, and never the reason that work fails."""

import json
import re
import subprocess
import sys

SCRIPT = """
import logging, sys
from common.logs import bind, configure_logging, get_logger
configure_logging(level="info", style="json", process="router")
log = get_logger("router.trial")
bind(run_id="run_1")
log.debug("not_shown")
log.info("first", model="猫", count=3)
log.info("odd", text="half \\ud800", large=2**70, kind=int)
logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
{end}
print("went on")
"""

LIKE_STRUCTLOGS = """
import json, logging, sys
import orjson, structlog
from common.logs import bind, bind_only, configure_logging, get_logger

class Printed:
    name = "router.trial"
    def say(self, line):
        print(line)
    debug = info = warning = error = critical = say

def add_process(_, __, event):
    return event | {"process": "router"}

def dumps(event, default):
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:
        return json.dumps(event, default=default)

chain = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_process,
]
rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(dumps)]
wrapper = structlog.make_filtering_bound_logger("info")
theirs = structlog.wrap_logger(Printed(), processors=[*chain, *rendering], wrapper_class=wrapper)
library = logging.StreamHandler(sys.stdout)
library.setFormatter(structlog.stdlib.ProcessorFormatter(
    foreign_pre_chain=chain, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering]
))
configure_logging(level="info", style="json", process="router")
logging.getLogger().addHandler(library)
ours = get_logger("router.trial")

def say(log):
    log.info("nothing_is_bound_yet", model="猫", count=3, ratio=0.5, none=None, flag=True, parts=[1, {"a": 2}])
    structlog.contextvars.bind_contextvars(run_id="run_1")
    bind(run_id="run_1")
    log.debug("not_shown")
    log.warning("bound", seconds=1.25)
    log.info("own_words_win", run_id="run_2", level="own", logger="own", process="own", timestamp="own")
    log.info("odd", text="half \\ud800", large=2**70, kind=int, error=ValueError("x"), some={3})
    log.error("no_exception", exc_info=None)
    log.error("with_one", exc_info=ValueError("y"), job="job_1")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed", last="word")
    structlog.contextvars.clear_contextvars()
    bind_only()

say(theirs)
say(ours)
bind(run_id="run_1")
structlog.contextvars.bind_contextvars(run_id="run_1")
logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("failed")
"""


def said(end: str = "") -> tuple[list[dict[str, object]], str]:
    """What the script wrote to its log, and to its output."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT.replace("{end}", end)], capture_output=True, check=True)
    return [json.loads(line) for line in ran.stderr.splitlines()], ran.stdout.decode()


def test_every_line_is_an_object_with_what_is_bound_and_where_it_comes_from():
    lines, _ = said()

    first, odd, library, failed = lines
    assert first.pop("timestamp")
    assert first == {
        "event": "first",
        "level": "info",
        "logger": "router.trial",
        "process": "router",
        "run_id": "run_1",
        "model": "猫",
        "count": 3,
    }
    assert (odd["text"], odd["large"], odd["kind"]) == ("half \ud800", 2**70, "<class 'int'>")
    assert (library["event"], library["level"], library["logger"]) == ("from uvicorn", "warning", "uvicorn.error")
    assert "ZeroDivisionError" in str(failed["exception"])


def test_a_logger_that_has_spoken_before_logging_is_configured_does_as_it_is_told_from_then_on():
    script = """
from common.logs import configure_logging, get_logger
log = get_logger("router.early")
log.debug("before")
configure_logging(level="warning", style="json", process="router")
for _ in range(2):
    log.info("not_shown")
    log.warning("after")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert b"before" in ran.stdout
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [(line["event"], line["logger"]) for line in lines] == [("after", "router.early")] * 2


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else():
    _, out = said("sys.stderr.close(); log.info('lost'); log.warning('lost')")

    assert out == "went on\n"


def test_every_line_is_to_the_letter_what_structlogs_own_steps_make_of_it():
    ran = subprocess.run([sys.executable, "-c", LIKE_STRUCTLOGS], capture_output=True, check=True)
    ours, theirs = (
        [re.sub(r'("timestamp":) ?"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"', r"\1then", line) for line in lines.splitlines()]
        for lines in (ran.stderr.decode(), ran.stdout.decode())
    )

    assert len(ours) == 9
    assert all("then" in line for line in ours)
    assert ours == theirs
