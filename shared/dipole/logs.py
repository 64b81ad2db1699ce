"""Structured logs for every process: readable lines on a terminal, one JSON object a line anywhere else.

    log = structlog.get_logger()
    logs.configure_logging("rank-worker")  # once, at the start of a process
    log.info("group_sent", group=group.id)

Fields bound with `structlog.contextvars` (request_id, job_id) appear on every line that follows. The standard library's
loggers (uvicorn, celery, sqlalchemy) are led through the same formatter.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRET_WORDS = ("authorization", "api_key", "secret", "password", "token")


_TRACEBACK_FORMATTER = ExceptionDictTransformer(show_locals=False)  # locals hold keys and whole images


def _mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A field whose name says it is a secret never reaches a log."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "***"
    return event


def configure_logging(service: str, *, level: str = "INFO", json: bool | None = None) -> None:
    """Send all logs to stderr. `json=None` decides by whether stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json

    def add_service_name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service_name,
        _mask_secrets,
    ]
    last: list[Processor] = (
        [structlog.processors.ExceptionRenderer(_TRACEBACK_FORMATTER), structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpx2", "httpcore", "stamina"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
