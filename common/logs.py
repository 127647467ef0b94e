"""Structured logs: one JSON line an event (or a coloured one on a terminal), with request, run and node ids.

Prompts, pictures and keys are never logged; an event names a run by its id, and the catalog holds the rest.
"""

import logging
import sys
from typing import Any

import structlog

bind = structlog.contextvars.bind_contextvars
"""Adds ids to every line of the present request: `bind(run_id=...)`."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose calls read `log.info("event_name", key=value)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure_logging(*, level: str, style: str, process: str) -> None:
    """Send this process's own lines and those of uvicorn and SQLAlchemy through one formatter to stderr.

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
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )

    def add_process(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    structlog.configure(
        processors=[*shared, add_process, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
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
