"""The types of plain ASGI, and a problem document as a response that a route of any framework may return."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from dipole.protocol.problems import PROBLEM_JSON, problem_of_refusal
from dipole.protocol.schemas import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


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


def answer_problem(_: Any, error: Exception) -> Any:
    """The one exception handler. Returns Any because the framework names its own response type."""
    document, headers = problem_of_refusal(error)
    return ProblemResponse(document, headers)
