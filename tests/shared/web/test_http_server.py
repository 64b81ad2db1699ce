"""The bounds of a connection, over real sockets, on the smallest app that shows them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dipole.web import http_server

from ...processes import exchange

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
Serve = Callable[..., contextlib.AbstractContextManager[str]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers a body's size; at /large, ten megabytes."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = b"x" * 10_000_000 if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`with serve(HEAD_TIMEOUT_S=0.1) as url:`, a server of `echo` with bounds of the test's own."""

    @contextlib.contextmanager
    def run(app: Any = echo, **bounds: float) -> Iterator[str]:
        for name, value in bounds.items():
            monkeypatch.setattr(http_server, name, value)
        server = http_server.create_server(app, host="127.0.0.1", port=0, timeout_graceful_shutdown=1)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return run


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def trickle(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"a")
        time.sleep(0.01)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70_000],
        [b"GET /" + b"a" * 70_000],
        [b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 12_000],
        [CHUNKED, b"0\r\nx: " + b"a" * 70_000],
        [CHUNKED, b"5;x=" + b"a" * 70_000],
        [CHUNKED, b"1\r\nx\r\n" * 9000],
        [b"\x16\x03\x01 this is TLS\r\n\r\n"],
    ],
    ids=["header", "target", "headers", "trailer", "chunk header", "crumbs", "no HTTP"],
)
def test_what_has_no_end_is_refused(serve: Serve, pieces: list[bytes]) -> None:
    """A head, a trailer and a chunk's header are bounded in bytes, a chunked body in pieces: 400, and closed."""
    with serve() as url:
        assert exchange(url, *pieces)[:12] in (b"HTTP/1.1 400", b"")
        assert exchange(url, GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")).endswith(b"\r\n\r\n0")


def test_a_large_head_and_small_chunks_are_taken(serve: Serve) -> None:
    """What real callers send passes: 16 KiB of cookies, and a body in lines."""
    with serve() as url:
        cookies = b"cookie: " + b"a" * 16_000 + b"\r\nconnection: close\r\n"
        assert exchange(url, GET[:-2] + cookies + b"\r\n").startswith(b"HTTP/1.1 200")
        lines = b"14\r\n" + b"x" * 20 + b"\r\n"
        head = CHUNKED[:-2] + b"connection: close\r\n\r\n"
        assert exchange(url, head, lines * 5000, b"0\r\n\r\n").endswith(b"\r\n\r\n100000")


@pytest.mark.parametrize(
    "piece", [b"", b"GET / HTTP/1.1\r\nx: a", GET + b"GET / HT"], ids=["nothing", "half", "second"]
)
def test_a_head_that_does_not_come_is_not_waited_for(serve: Serve, piece: bytes) -> None:
    """408, and closed: for a first head, for a later one, and where nothing came at all."""
    with serve(HEAD_TIMEOUT_S=0.2) as url:
        assert b"HTTP/1.1 408" in exchange(url, piece)


def test_trickling_does_not_win_time(serve: Serve) -> None:
    """A head's time runs from its beginning, and the rest of a refused body's from the refusal."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await echo(scope, receive, send)
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    for app, head in ((echo, GET[:-4]), (refuse, b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n\r\n")):
        with serve(app, HEAD_TIMEOUT_S=0.3) as url, connect(url) as connection:
            connection.sendall(head)
            with pytest.raises(ConnectionError):
                trickle(connection)


def test_a_slow_answer_is_waited_for(serve: Serve) -> None:
    """The time for a head does not run while the app is at work."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.5)
        await echo(scope, receive, send)

    with serve(slow, HEAD_TIMEOUT_S=0.1) as url:
        assert exchange(url, GET).startswith(b"HTTP/1.1 200")


def test_requests_that_come_early_wait_outside(serve: Serve) -> None:
    """Each is answered in its turn, and none is begun before: thousands of them are not thousands of tasks."""
    begun: list[int] = []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["type"] == "http")
        await echo(scope, receive, send)
        begun.append(-(scope["type"] == "http"))

    with serve(count, HEAD_TIMEOUT_S=0.5) as url:
        assert exchange(url, GET * 500).count(b"HTTP/1.1 200") == 500
    assert {sum(begun[:n]) for n in range(len(begun) + 1)} <= {0, 1}


def test_an_answer_that_nobody_reads_is_cut_off(serve: Serve) -> None:
    """Its memory and its connection come back."""
    with serve(UNREAD_TIMEOUT_S=0.3) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(2**20):
                received += len(chunk)
        assert received < 10_000_000


def test_idle_connections_make_room(serve: Serve) -> None:
    """Past the bound the one that has been idle for longest goes, so that others are answered."""
    with serve(MAX_CONNECTIONS=5) as url, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(url)) for _ in range(30)]
        held[-1].sendall(GET)
        assert held[-1].recv(12) == b"HTTP/1.1 200"
        with contextlib.suppress(ConnectionError):
            assert held[0].recv(1) == b""


def test_a_server_full_of_work_says_so(serve: Serve) -> None:
    """When every connection is at work, one more gets a 503 and a time to come back."""
    with serve(MAX_CONNECTIONS=2) as url, contextlib.ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connect(url))
            busy.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
            assert busy.recv(12) == b"HTTP/1.1 100"
        answer = exchange(url, GET)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: 1\r\n" in answer.lower()
