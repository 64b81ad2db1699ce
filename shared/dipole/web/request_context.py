"""Request and job ids carried through headers and logs, the access log, and a 500 for what nobody caught."""

from __future__ import annotations

import re
import time
import uuid

import structlog

from dipole import tracing
from dipole.protocol.problems import problem_of
from dipole.web.asgi import ASGIApp, Message, ProblemResponse, Receive, Scope, Send
from dipole.web.auth import OPEN_PATHS

log = structlog.get_logger()
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CONTEXT_HEADERS = {b"x-request-id": "request_id", b"x-job-id": "job_id"}


def context_headers() -> dict[str, str]:
    """The ids bound to this thread or task, and its span, as headers for a request to another of our services."""
    bound = structlog.contextvars.get_contextvars()
    ids = {header.decode(): str(bound[name]) for header, name in _CONTEXT_HEADERS.items() if name in bound}
    return {**ids, **tracing.current_headers()}


class RequestContext:
    """Outermost: binds request and job id to the logs, traces the request, writes the access line, turns the unexpected
    into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        ids = {
            _CONTEXT_HEADERS[name]: value.decode()
            for name, value in scope["headers"]
            if name in _CONTEXT_HEADERS and _SAFE_ID.fullmatch(value.decode("latin-1"))
        }
        request_id = ids.setdefault("request_id", uuid.uuid4().hex)
        if scope["path"] in OPEN_PATHS:  # probes and scrapes
            return await self._answer(scope, receive, send, ids, request_id)
        name = f"{scope['method']} {'/'.join(scope['path'].split('/')[:3])}"
        parent = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"traceparent"), None)
        with tracing.trace_span(name, kind="server", parent=parent, method=scope["method"], path=scope["path"], **ids):
            await self._answer(scope, receive, send, ids, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ids: dict[str, str], request_id: str) -> None:
        status, began = 0, time.monotonic()

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(**ids):
            try:
                await self.app(scope, receive, tagged_send)
            except Exception as error:
                log.exception("request_failed", method=scope["method"], path=scope["path"])
                # the answer has begun: only the connection can be broken off
                if status:
                    raise
                await ProblemResponse(*problem_of(error))(scope, receive, tagged_send)
            tracing.set_attributes(status=status)
            quiet = scope["path"] in OPEN_PATHS
            (log.debug if quiet else log.info)(
                "request", method=scope["method"], path=scope["path"], status=status,
                seconds=round(time.monotonic() - began, 4),
            )  # fmt: skip
