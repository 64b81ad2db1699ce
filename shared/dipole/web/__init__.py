"""What every HTTP app of Dipole has in common, without a web framework: problem+json, keys, bounds, request ids.

    app = FastAPI(...)
    for kind in (DipoleError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, web.answer)             # one handler: RFC 9457 for all of them
    app.add_middleware(web.BodyLimit, max_bytes=..., timeout_s=...)   # 413 / 408 while streaming, before any parsing
    app.add_middleware(web.KeyGuard, keys=[...])                # 401; no keys: everybody may (loopback only)
    app.add_middleware(web.RequestContext)                      # added last = outermost: request id, access log, 500

    web.refuse_open_host(host, key, "DIPOLE_API_KEY")           # at start: no key off loopback -> ConfigurationError
    app.openapi = lambda: web.with_problems(get_openapi(...))   # errors documented as application/problem+json

Everything here is plain ASGI, so FastAPI, Starlette and a bare callable are served alike. `ProblemResponse` is an ASGI
app that may be returned wherever Starlette wants a response; `field_path` and `problem_of` need no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog

from dipole.errors import ConfigurationError, DipoleError, InvalidInput, Overloaded, TooLarge, Unauthorized
from dipole.protocol.schemas import FieldError, Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBLEM_JSON = "application/problem+json"
OPEN_PATHS = ("/livez", "/readyz", "/metrics")
MAX_FIELD_ERRORS = 20
DRAIN_BYTES, DRAIN_S = 16 * 2**20, 2.0

log = structlog.get_logger()


# ---- problems ---------------------------------------------------------------------------------------------------


def field_path(location: Sequence[str | int]) -> str:
    """('candidates', 3, 'image', 'data') -> 'candidates[3].image.data'."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def problem(
    status: int, detail: str, *, slug: str | None = None, errors: Iterable[FieldError] = (), title: str | None = None
) -> Problem:
    """A problem document; its title is the status phrase unless given."""
    return Problem(
        type=f"urn:dipole:problem:{slug}" if slug else "about:blank",
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=list(errors),
    )


def _validation_problem(found: Sequence[Mapping[str, Any]]) -> Problem:
    """Pydantic's error list, with the location a caller would write and at most MAX_FIELD_ERRORS of them."""
    errors = []
    for error in found[:MAX_FIELD_ERRORS]:
        location = list(error["loc"])
        if location and location[0] in ("body", "query", "path", "header"):
            location = location[1:]
        message = str(error["msg"]).removeprefix("Value error, ")
        errors.append(FieldError(field=field_path(location) or "body", message=message))
    more = f" ({len(found) - len(errors)} more errors)" if len(found) > len(errors) else ""
    first = errors[0]
    named = first.message.startswith(f"{first.field}: ")  # our own sentences do that
    detail = first.message if named else f"{first.field}: {first.message}"
    return problem(422, detail + more, slug=InvalidInput.slug, errors=errors)


def problem_of(error: BaseException) -> tuple[Problem, dict[str, str]]:
    """The problem and the extra headers that stand for an exception. The unexpected gives nothing of itself away."""
    if isinstance(error, DipoleError):
        fields = []
        if isinstance(error, InvalidInput) and error.field:
            fields = [FieldError(field=error.field, message=str(error))]
        headers = {}
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        return problem(error.status, str(error), slug=error.slug, errors=fields), headers
    listed = getattr(error, "errors", None)  # pydantic's ValidationError, FastAPI's RequestValidationError
    if callable(listed):
        return _validation_problem(listed()), {}
    status = getattr(error, "status_code", None)  # Starlette's HTTPException
    if isinstance(status, int):
        detail = str(getattr(error, "detail", "") or HTTPStatus(status).phrase)
        return problem(status, detail), dict(getattr(error, "headers", None) or {})
    return problem(
        500, "the server failed; its log has the reason under this answer's X-Request-ID", slug="internal"
    ), {}


class ProblemResponse:
    """An ASGI app that answers one problem document."""

    def __init__(self, document: Problem, headers: Mapping[str, str] | None = None) -> None:
        self.document = document
        self.status_code = document.status
        self.body = document.model_dump_json(exclude_none=True).encode()
        self.headers = {"content-type": PROBLEM_JSON, "content-length": str(len(self.body)), **(headers or {})}
        self.background = None  # Starlette looks for it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status_code, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else self.body})


def answer(_: Any, error: Exception) -> Any:
    """The one exception handler. Returns Any because the framework names its own response type."""
    document, headers = problem_of(error)
    return ProblemResponse(document, headers)


# ---- keys -------------------------------------------------------------------------------------------------------


def key_digest(key: str) -> str:
    """What is stored and compared instead of a key. Keys are long and random, so one SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(scope: Scope) -> str | None:
    """The key of `Authorization: Bearer …`, if there is one."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" and key.strip() else None
    return None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open_host(host: str, key: object | None, setting: str) -> None:
    """A server that others can reach needs a key that is not empty. Raises ConfigurationError that says what to set."""
    if not key and not is_loopback(host):
        raise ConfigurationError(
            f"refusing to listen on {host} without a key: set {setting}, or listen on 127.0.0.1 where none is needed"
        )


class KeyGuard:
    """Lets a request through when its bearer key is one of `keys`. Without keys everybody may; health stays open."""

    def __init__(self, app: ASGIApp, *, keys: Collection[str], open_paths: Collection[str] = OPEN_PATHS) -> None:
        self.app = app
        self.digests = [key_digest(key) for key in keys]
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.digests or scope["path"] in self.open_paths:
            return await self.app(scope, receive, send)
        digest = key_digest(bearer(scope) or "")
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if any(matches):
            return await self.app(scope, receive, send)
        error = Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        await ProblemResponse(*problem_of(error))(scope, receive, send)


# ---- bounds -----------------------------------------------------------------------------------------------------


class BodyLimit:
    """Bounds a body's bytes and the time it may take, while it streams in, whatever Content-Length says."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float = 60.0) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _BoundedBody(receive, self.max_bytes, self.timeout_s)
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if body.refusal is None or started:
                started = True
                await send(message)

        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self.max_bytes:
            body.refuse_size()
        else:
            with contextlib.suppress(_Refused):
                await self.app(scope, body.receive, guarded_send)
        if body.refusal is not None and not started:
            await body.drain()
            await ProblemResponse(body.refusal, {"connection": "close"})(scope, receive, send)


class _Refused(Exception):
    """Ends the app's reading of a body that will not be accepted."""


class _BoundedBody:
    """A `receive` that counts. After a refusal it only raises, and `refusal` says what to answer."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive, self._max, self._timeout_s = receive, max_bytes, timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._seen, self._complete = 0, False
        self.refusal: Problem | None = None

    def refuse_size(self) -> None:
        self.refusal = problem(
            413, f"the body exceeds {self._max} bytes; send fewer or smaller images", slug=TooLarge.slug
        )

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # only a disconnect can follow
        if self.refusal is None:
            try:
                async with asyncio.timeout(self._deadline - time.monotonic()):
                    message = await self._receive()
            except TimeoutError:
                self.refusal = problem(
                    408, f"the body did not arrive within {self._timeout_s:g} s", slug="body-timeout"
                )
                raise _Refused from None
            self._seen += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._seen <= self._max:
                return message
            self.refuse_size()
        raise _Refused

    async def drain(self) -> None:
        """Read on for a moment, so that the caller has sent enough to look at the answer; a reset would eat it."""
        assert self.refusal is not None
        if self.refusal.status != 413:
            return
        drained = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._complete and drained < DRAIN_BYTES:
                    message = await self._receive()
                    drained += len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)


# ---- requests ---------------------------------------------------------------------------------------------------

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CONTEXT_HEADERS = {b"x-request-id": "request_id", b"x-job-id": "job_id"}


def context_headers() -> dict[str, str]:
    """The ids bound to this thread or task, as headers for a request to another of our services."""
    bound = structlog.contextvars.get_contextvars()
    return {header.decode(): str(bound[name]) for header, name in _CONTEXT_HEADERS.items() if name in bound}


class RequestContext:
    """Outermost: binds request and job id to the logs, writes the access line, turns the unexpected into a 500."""

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
                if status:  # the answer has begun: only the connection can be broken off
                    raise
                await ProblemResponse(*problem_of(error))(scope, receive, tagged_send)
            quiet = scope["path"] in OPEN_PATHS
            (log.debug if quiet else log.info)(
                "request", method=scope["method"], path=scope["path"], status=status,
                seconds=round(time.monotonic() - began, 4),
            )  # fmt: skip


# ---- OpenAPI ----------------------------------------------------------------------------------------------------


def with_problems(openapi: dict[str, Any], example: Problem | None = None) -> dict[str, Any]:
    """An OpenAPI document whose 4xx and 5xx answers are application/problem+json with the Problem schema."""
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    whole = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(whole.pop("$defs", {}))
    schemas["Problem"] = whole
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if example is not None:
        content["example"] = example.model_dump(exclude_none=True)
    for path in openapi.get("paths", {}).values():
        for operation in path.values():
            for status, response in operation.get("responses", {}).items():
                if str(status)[:1] in "45":
                    response["content"] = {PROBLEM_JSON: content}
    return openapi
