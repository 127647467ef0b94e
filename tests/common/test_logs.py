"""Lines of the log: one JSON object each, from our own code and from libraries, and never the reason that work fails."""

import json
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


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else():
    _, out = said("sys.stderr.close(); log.info('lost'); log.warning('lost')")

    assert out == "went on\n"
