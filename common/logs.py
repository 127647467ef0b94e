"""Structured logs: one JSON line an event (or a coloured one on a terminal), with request, run and node ids.

Prompts, pictures and keys are never logged; an event names a run by its id, and the catalog holds the rest.
"""

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import orjson
import structlog

bind = structlog.contextvars.bind_contextvars
"""Adds ids to every line of the present request: `bind(run_id=...)`."""


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose calls read `log.info("event_name", key=value)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def configure_logging(*, level: str, style: str, process: str) -> None:
    """Send this process's own lines to stderr, and those of uvicorn and SQLAlchemy in the same form.

    Our own do not go through `logging`, which costs several times what a line does.
    style: json, console, or auto (console when stderr is a terminal). process: "router" or "node", part of each line.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: list[Any] = (
        # The plain traceback: the pretty one prints local variables, and those hold prompts and keys.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    )

    def add_process(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    structlog.configure(
        processors=[*shared, add_process, *renderer],
        logger_factory=lambda name: _Lines(sys.stderr, name),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, add_process],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # httpx logs every request with its full address at INFO; uvicorn's access log would hold signed links.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "aiosqlite", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Lines:
    """Writes each line at once. One that cannot be written, because a disk is full or a pipe has no reader, is lost: nothing
    else may fail by it."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self.name = name

    def info(self, line: str) -> None:
        with suppress(OSError, ValueError):
            # In one piece: threads write too.
            self._file.write(f"{line}\n")
            self._file.flush()

    debug = warning = error = critical = info


def _json(event: structlog.typing.EventDict, default: Callable[[Any], Any], **_: Any) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:
        # Half a surrogate, or a number beyond 64 bits: nothing that is worth a line that is lost.
        return json.dumps(event, default=default)
