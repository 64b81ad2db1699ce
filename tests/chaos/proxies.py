"""What stands between the platform and what it talks to, so that a way can be cut, moved, slowed down or lied on."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from ..quiet_handler import QuietHandler

UPSTREAM_TIMEOUT_S = 70.0


class TcpProxy:
    """A fixed port in front of a port that may change. `move` and `close_door` also end what is connected."""

    def __init__(self, target: int) -> None:
        self._target: int | None = target
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self) -> int | None:
        return self._target

    def move(self, target: int | None) -> None:
        """Lead to another port from now on; None lets nobody in."""
        self._target = target
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.move(None)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        target = self._target
        try:
            if target is None:
                raise ConnectionRefusedError
            inner = socket.create_connection(("127.0.0.1", target), timeout=5)
        except OSError:
            taken.close()
            return
        for each in (taken, inner):
            each.settimeout(None)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections |= {taken, inner}
        back = threading.Thread(target=_copy, args=(inner, taken), daemon=True)
        back.start()
        if target != self._target:  # moved meanwhile
            self.move(self._target)
        _copy(taken, inner)
        back.join()
        with self._lock:
            self._connections -= {taken, inner}
        for each in (taken, inner):
            each.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class EndpointProxy:
    """A reward endpoint that passes everything on to `upstream`, unless `misbehave` has said otherwise."""

    def __init__(self, upstream: str) -> None:
        self._kind, self._variant = "", ""
        # the environment's proxies are for the world outside
        self._http = httpx.Client(base_url=upstream, timeout=UPSTREAM_TIMEOUT_S, trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def misbehave(self, kind: str, variant: str) -> None:
        """`kind` of schedule.KINDS; "" makes it honest."""
        self._kind, self._variant = kind, variant

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._http.close()

    def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes] | None:
        """Status, media type and body; None hangs up."""
        kind, variant = self._kind, self._variant
        if kind == "endpoint-refuses":
            return None if variant == "0" else (int(variant), "application/json", b"{}")
        if kind == "endpoint-slow":
            until = time.monotonic() + float(variant)
            while time.monotonic() < until and self._kind:
                time.sleep(0.1)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
        try:
            answer = self._http.request(method, path, headers=kept, content=body)
        except httpx.HTTPError:
            return None
        media_type, said = answer.headers.get("content-type", ""), answer.content
        if kind == "endpoint-lies" and method == "POST" and answer.status_code == 200:
            media_type, said = bend_answer(variant, media_type, said)
        return answer.status_code, media_type, said

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        exchange: Callable[..., tuple[int, str, bytes] | None] = self._exchange

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def answer(self, body: bytes) -> None:
                answer = exchange(self.command, self.path, dict(self.headers.items()), body)
                self.close_connection = answer is None
                if answer is None:
                    return
                status, media_type, said = answer
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        return Handler


def bend_answer(lie: str, media_type: str, body: bytes) -> tuple[str, bytes]:
    """A ranking's answer as a broken server would give it: nothing of it may be believed."""
    if lie == "html":
        return "text/html", b"<html>It works!</html>"
    if lie == "cut":
        return media_type, body[: len(body) // 2]
    ranking: dict[str, Any] = json.loads(body)
    results: list[dict[str, Any]] = ranking["results"]
    if lie == "nan":
        results[0]["score"] = float("nan")
    elif lie == "missing":
        results.pop()
    elif lie == "twice":
        results[-1] = results[0]
    elif lie == "stranger":
        results[0]["id"] = "nobody"
    return media_type, json.dumps(ranking).encode()
