"""The framework-free web pieces and the logs, under the smallest ASGI apps that show them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from pydantic import BaseModel, SecretStr, ValidationError

from dipole import logs
from dipole.errors import ConfigurationError, Conflict, InvalidInput, NotFound, Overloaded, TooLarge, Unauthorized
from dipole.protocol import problems
from dipole.web import auth, body_limit, request_context

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(app: Any, path: str = "/", **kwargs: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        return await client.request(kwargs.pop("method", "GET"), path, **kwargs)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(structlog.contextvars.get_contextvars()).encode()})


async def swallow(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads its whole body and, as web frameworks do, answers 400 when reading fails."""
    status, size = 200, 0
    try:
        while True:
            message = await receive()
            size += len(message["body"])
            if not message.get("more_body"):
                break
    except Exception:
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (InvalidInput("x is wrong", field="a[0].x"), 422, {}),
        (TooLarge("too many"), 413, {}),
        (NotFound("no such job"), 404, {}),
        (Conflict("it has finished"), 409, {}),
        (Unauthorized("a key"), 401, {"WWW-Authenticate": "Bearer"}),
        (Overloaded("full", retry_after=2.2), 503, {"Retry-After": "3"}),
        (RuntimeError("password=hunter2"), 500, {}),
    ],
)
def test_every_error_is_one_problem(error: Exception, status: int, headers: dict[str, str]) -> None:
    """Status, type and headers come from the error tree; what was not raised on purpose keeps its words to itself."""
    problem, extra = problems.problem_of(error)
    assert (problem.status, extra) == (status, headers)
    assert "hunter2" not in problem.model_dump_json()
    if isinstance(error, InvalidInput) and error.field:
        assert problem.errors[0].field == "a[0].x"


def test_validation_errors_name_paths_as_a_caller_writes_them() -> None:
    """Indices in brackets, FastAPI's leading "body" dropped, and a bounded number of them."""

    class Inner(BaseModel):
        x: int

    class Outer(BaseModel):
        many: list[Inner]

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"many": [{"x": "?"}] * 50})
    problem, _ = problems.problem_of_refusal(caught.value)
    assert problem.errors[3].field == "many[3].x"
    assert len(problem.errors) == problems.MAX_FIELD_ERRORS
    assert "30 more errors" in (problem.detail or "")
    assert problems.format_field_path(["candidates", 3, "image", "data"]) == "candidates[3].image.data"


async def test_the_unexpected_is_a_500_with_a_request_id() -> None:
    """An exception becomes a problem; the id leads from the answer to the log."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("hunter2")

    answer = await ask(request_context.RequestContext(broken))
    assert answer.status_code == 500
    assert answer.headers["content-type"] == problems.PROBLEM_JSON
    assert "hunter2" not in answer.text
    assert answer.headers["x-request-id"]


async def test_ids_travel_on() -> None:
    """Request and job id of a request are bound to its logs, and context_headers hands them to the next service."""
    answer = await ask(request_context.RequestContext(hello), headers={"X-Request-ID": "r-1", "X-Job-ID": "job:7"})
    assert answer.json() == {"request_id": "r-1", "job_id": "job:7"}
    with structlog.contextvars.bound_contextvars(request_id="r-2"):
        assert request_context.context_headers() == {"x-request-id": "r-2"}


@pytest.mark.parametrize("declared", [True, False])
async def test_the_body_limit_wins_over_the_apps_own_answer(declared: bool) -> None:
    """The app's 400 for a broken read is replaced by the 413; a body of exactly the limit passes."""
    app = body_limit.BodyLimit(swallow, max_bytes=10)

    async def chunks(size: int) -> Any:
        for _ in range(size):
            yield b"x"

    fits = await ask(app, method="POST", content=b"x" * 10 if declared else chunks(10))
    assert (fits.status_code, fits.text) == (200, "10")
    large = await ask(app, method="POST", content=b"x" * 11 if declared else chunks(11))
    assert large.status_code == 413
    assert large.headers["connection"] == "close"


async def test_bodies_are_bounded_together() -> None:
    """A body without room is refused with a time to come back, unread; room comes back with the answer."""
    budget, read = body_limit.BodyBudget(25), 0
    holding, answered = asyncio.Event(), asyncio.Event()

    async def hold(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        read += 1
        holding.set()
        await answered.wait()
        await swallow(scope, receive, send)

    async def chunks() -> Any:
        for _ in range(10):
            yield b"x"

    app = body_limit.BodyLimit(hold, max_bytes=20, budget=budget)
    first = asyncio.create_task(ask(app, method="POST", content=b"x" * 20))
    await holding.wait()
    refused = await ask(app, method="POST", content=b"x" * 10)
    assert (refused.status_code, refused.headers["retry-after"], read) == (503, "2", 1)
    answered.set()
    assert (await first).status_code == 200
    assert (await ask(app, method="POST", content=b"x" * 20)).status_code == 200
    # a body that does not say how large it is counts as it comes
    assert budget.take(20)
    assert (await ask(app, method="POST", content=chunks())).status_code == 503
    budget.give_back(20)
    assert (await ask(app, method="POST", content=chunks())).status_code == 200


async def test_a_caller_who_hangs_up_is_nobodys_fault() -> None:
    """A body whose end never comes ends its request without an answer, and nothing is logged as broken."""

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await body_limit.BodyLimit(swallow, max_bytes=10)({"type": "http", "headers": []}, receive, send)


PAGES: list[tuple[dict[str, str], int]] = [
    ({}, 200),
    ({"host": "LOCALHOST:8400"}, 200),
    ({"host": "[::1]:8400", "origin": "http://localhost:3000"}, 200),
    ({"host": "evil.example"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
    ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), PAGES)
async def test_without_a_key_pages_of_other_sites_are_refused(headers: dict[str, str], status: int) -> None:
    """By Host, by Origin and by what browsers say of a request; with a key, which no page has, the key decides."""
    open_app, locked = auth.KeyGuard(hello, keys=[]), auth.KeyGuard(hello, keys=["the-key"])
    url = "http://127.0.0.1:8400/livez"
    assert (await ask(open_app, url, headers=headers)).status_code == status
    assert (await ask(locked, url, headers={**headers, "authorization": "Bearer the-key"})).status_code == 200
    # a form that posts is never a link
    if "sec-fetch-site" in headers:
        same = 200 if headers["sec-fetch-site"] == "same-origin" else 403
        assert (await ask(open_app, url, method="POST", headers=headers)).status_code == same


async def test_off_loopback_a_server_without_a_key_has_any_name() -> None:
    """A reward server of one's own in a network: its callers name it as they do, and its own pages may call it."""
    app = auth.KeyGuard(hello, keys=[])
    assert (await ask(app, "http://rewards.lan/", headers={"origin": "http://rewards.lan"})).status_code == 200
    assert (await ask(app, "http://rewards.lan/", headers={"origin": "http://evil.example"})).status_code == 403


async def test_any_of_several_keys_opens() -> None:
    """Keys are compared as digests; no keys means no guard; open paths need none."""
    guarded = auth.KeyGuard(hello, keys=["first-key", "second-key"], open_paths=["/livez"])
    for key, status in (("first-key", 200), ("second-key", 200), ("third-key", 401)):
        assert (await ask(guarded, headers={"Authorization": f"bearer {key}"})).status_code == status
    assert (await ask(guarded, "/livez")).status_code == 200
    assert (await ask(auth.KeyGuard(hello, keys=[]))).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    """Only addresses that nobody else can reach."""
    assert auth.is_loopback(host) is loopback


@pytest.mark.parametrize("key", [None, "", SecretStr("")])
def test_an_open_host_needs_a_key_that_is_not_empty(key: Any) -> None:
    """None and empty are the same: the sentence names the setting. Loopback needs none."""
    with pytest.raises(ConfigurationError, match="DIPOLE_X_KEY"):
        auth.refuse_open_host("0.0.0.0", key, "DIPOLE_X_KEY")
    auth.refuse_open_host("127.0.0.1", key, "DIPOLE_X_KEY")
    auth.refuse_open_host("0.0.0.0", SecretStr("k"), "DIPOLE_X_KEY")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_logs_are_json_lines_without_secrets(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own and the standard library's lines are JSON with service and ids; secrets are masked, locals not shown."""
    logs.configure_logging("tested", json=True)
    hunter = "hunter2"
    with structlog.contextvars.bound_contextvars(request_id="r-9"):
        structlog.get_logger().info("hello", api_key=hunter, size=3)
        logging.getLogger("uvicorn").warning("careful")
        try:
            raise ValueError("broken")
        except ValueError:
            structlog.get_logger().exception("failed")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["hello", "careful", "failed"]
    assert all(line["service"] == "tested" and line["request_id"] == "r-9" for line in lines)
    assert lines[0]["api_key"] == "***"
    assert lines[2]["exception"][0]["exc_value"] == "broken"
    assert "hunter2" not in json.dumps(lines)
