"""Bounds of requests' bodies: each in bytes and seconds, while it streams in, and in bytes all that are held."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import NoReturn

from dipole.errors import Overloaded, TooLarge
from dipole.protocol.problems import make_problem, problem_of
from dipole.protocol.schemas import Problem
from dipole.web.asgi import ASGIApp, Message, ProblemResponse, Receive, Scope, Send

DRAIN_BYTES, DRAIN_S = 16 * 2**20, 2.0
MAX_HELD_BODIES = 4  # of the largest that is accepted, where nobody says more


BUSY_RETRY_S = 2.0


class BodyBudget:
    """Bytes of bodies that a process holds at once: a body counts from its head until its request is answered."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, size: int) -> bool:
        """Whether there was room; all of it is taken, or nothing."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size


class BodyLimit:
    """Bounds a body's bytes and the time it may take, while it streams in, whatever Content-Length says: 413 and 408.

    A body for which `budget` has no room is answered 503 before it is read, or where it grows past what it declared.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, timeout_s: float = 60.0, budget: BodyBudget | None = None
    ) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s
        self.budget = budget or BodyBudget(MAX_HELD_BODIES * max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _BoundedBody(receive, self.max_bytes, self.timeout_s, self.budget)
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if not body.is_refused or started:
                started = True
                await send(message)

        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        try:
            with contextlib.suppress(_BodyRefused):
                body.declare(int(declared) if declared.isdigit() else 0)
                await self.app(scope, body.receive, guarded_send)
            if body.refusal is not None and not started:
                await body.drain_rest()
                document, headers = body.refusal
                await ProblemResponse(document, {**headers, "connection": "close"})(scope, receive, send)
        finally:
            self.budget.give_back(body.held_bytes)


class _BodyRefused(Exception):
    """Ends the app's reading of a body that will not be accepted, or not come."""


class _BoundedBody:
    """A `receive` that counts. After a refusal it only raises, and `refusal` says what to answer, if anyone listens."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float, budget: BodyBudget) -> None:
        self._receive, self._max, self._timeout_s, self._budget = receive, max_bytes, timeout_s, budget
        self._deadline = time.monotonic() + timeout_s
        self._received_bytes, self._complete = 0, False
        self.held_bytes = 0
        self.is_refused = False
        self.refusal: tuple[Problem, dict[str, str]] | None = None

    def declare(self, size: int) -> None:
        """Hold room for a body of `size` bytes. Raises _BodyRefused where it is too large, or too much with others."""
        if size > self._max:
            problem = f"the body exceeds {self._max} bytes; send fewer or smaller images"
            self._refuse(make_problem(413, problem, slug=TooLarge.slug))
        if size > self.held_bytes:
            if not self._budget.take(size - self.held_bytes):
                self._refuse(
                    *problem_of(Overloaded("too many bytes of requests are held already", retry_after=BUSY_RETRY_S))
                )
            self.held_bytes = size

    def _refuse(self, document: Problem, headers: dict[str, str] | None = None) -> NoReturn:
        self.is_refused, self.refusal = True, (document, headers or {})
        raise _BodyRefused

    async def receive(self) -> Message:
        if self._complete:
            # only a disconnect can follow
            return await self._receive()
        if self.is_refused:
            raise _BodyRefused
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self._refuse(
                make_problem(408, f"the body did not arrive within {self._timeout_s:g} s", slug="body-timeout")
            )
        if message["type"] == "http.disconnect":
            # the caller hung up: nobody is to blame, and nobody to be told
            self.is_refused = True
            raise _BodyRefused
        self._received_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        self.declare(self._received_bytes)
        return message

    async def drain_rest(self) -> None:
        """Read on for a moment, so that the caller has sent enough to look at the answer; a reset would eat it."""
        assert self.refusal is not None
        if self.refusal[0].status == 408:
            return
        drained = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._complete and drained < DRAIN_BYTES:
                    message = await self._receive()
                    drained += len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)
