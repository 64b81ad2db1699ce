"""Bounds of a request's body, in bytes and seconds, enforced while it streams in."""

from __future__ import annotations

import asyncio
import contextlib
import time

from dipole.errors import TooLarge
from dipole.protocol.problems import make_problem
from dipole.protocol.schemas import Problem
from dipole.web.asgi import ASGIApp, Message, ProblemResponse, Receive, Scope, Send

DRAIN_BYTES, DRAIN_S = 16 * 2**20, 2.0


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
            body.refuse_too_large()
        else:
            with contextlib.suppress(_BodyRefused):
                await self.app(scope, body.receive, guarded_send)
        if body.refusal is not None and not started:
            await body.drain_rest()
            await ProblemResponse(body.refusal, {"connection": "close"})(scope, receive, send)


class _BodyRefused(Exception):
    """Ends the app's reading of a body that will not be accepted."""


class _BoundedBody:
    """A `receive` that counts. After a refusal it only raises, and `refusal` says what to answer."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive, self._max, self._timeout_s = receive, max_bytes, timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._received_bytes, self._complete = 0, False
        self.refusal: Problem | None = None

    def refuse_too_large(self) -> None:
        self.refusal = make_problem(
            413, f"the body exceeds {self._max} bytes; send fewer or smaller images", slug=TooLarge.slug
        )

    async def receive(self) -> Message:
        if self._complete:
            # only a disconnect can follow
            return await self._receive()
        if self.refusal is None:
            try:
                async with asyncio.timeout(self._deadline - time.monotonic()):
                    message = await self._receive()
            except TimeoutError:
                self.refusal = make_problem(
                    408, f"the body did not arrive within {self._timeout_s:g} s", slug="body-timeout"
                )
                raise _BodyRefused from None
            self._received_bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._received_bytes <= self._max:
                return message
            self.refuse_too_large()
        raise _BodyRefused

    async def drain_rest(self) -> None:
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
