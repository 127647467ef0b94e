"""Structured logs: one JSON line an event (or a coloured one on a terminal), with request, run and node ids.

Prompts, pictures and keys are never logged; an event names a run by its id, and the catalog holds the rest.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO, cast

import orjson
import structlog

_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=MappingProxyType({}))
"""Never changed, only replaced: what a task binds is no concern of the one that started it."""


def bind(**ids: Any) -> None:
    """Add ids to every line of the present request: `bind(run_id=...)`."""
    _bound.set({**_bound.get(), **ids})


def bind_only(**ids: Any) -> None:
    """The same for a new request, which has nothing of what was bound before."""
    _bound.set(ids)


def bound() -> Mapping[str, Any]:
    """What is bound in the present request, by name."""
    return _bound.get()


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose calls read `log.info("event_name", key=value)`."""
    return cast(structlog.typing.FilteringBoundLogger, _Once(name))


def configure_logging(*, level: str, style: str, process: str) -> None:
    """Send this process's own lines to stderr, and those of uvicorn and SQLAlchemy in the same form.

    Our own do not go through `logging`, which costs several times what a line does.
    style: json, console, or auto (console when stderr is a terminal). process: "router" or "node", part of each line.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    # The plain traceback: the pretty one prints local variables, and those hold prompts and keys.
    render = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback) if console else _json

    def complete(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """In one step, as each that structlog takes costs several calls a line."""
        # What a line says itself stands first, and wins over what is bound.
        event = {**event, **_bound.get(), **event}
        event["level"] = method
        event["logger"] = event["_record"].name if "_record" in event else logger.name
        now = datetime.now(UTC)
        event["timestamp"] = _text(now) if console else now
        event["process"] = process
        return event

    structlog.configure(
        processors=[complete, render],
        logger_factory=lambda name: _Lines(sys.stderr, name),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[complete],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # httpx logs every request with its full address at INFO; uvicorn's access log would hold signed links.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "aiosqlite", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Once:
    """A logger of structlog's that is made before logging is configured, and would look for its method at each line. Here
    each is looked for once, as soon as it is the one that was configured; and then goes its own short way, as structlog's
    takes half as long again as the line itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lazy = structlog.get_logger(name)

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._lazy, method)
        if structlog.get_config()["cache_logger_on_first_use"]:
            if method in _OWN and self._lazy.is_enabled_for(_OWN[method]):
                found = _line(_Lines(sys.stderr, self._name), method)
            setattr(self, method, found)
        return found


_OWN = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""Methods that do nothing but write their line."""


def _line(lines: "_Lines", method: str) -> Callable[..., None]:
    complete, render = structlog.get_config()["processors"]

    def line(event: str, /, *values: object, **told: Any) -> None:
        told["event"] = event % values if values else event
        lines.info(render(lines, method, complete(lines, method, told)))

    return line


class _Lines:
    """Writes each line at once. One that cannot be written, because a disk is full or a pipe has no reader, is lost: nothing
    else may fail by it."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self.name = name

    def info(self, line: str) -> None:
        try:
            # In one piece: threads write too.
            self._file.write(f"{line}\n")
            self._file.flush()
        except (OSError, ValueError):
            return

    debug = warning = error = critical = info


def _json(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()
    except TypeError:
        # Half a surrogate, or a number beyond 64 bits: nothing that is worth a line that is lost.
        return json.dumps({**event, "timestamp": _text(event["timestamp"])}, default=repr)


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
