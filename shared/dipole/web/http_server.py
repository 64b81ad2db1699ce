"""uvicorn as every server of ours runs it, with bounds that the HTTP parser keeps before any app is asked.

    create_server(app, host=…, port=…).run()

| what a connection may do                    | bound              | past it                                     |
|---------------------------------------------|--------------------|---------------------------------------------|
| send a head, a trailer or a chunk's header  | MAX_HEAD_BYTES     | 400, closed                                 |
| owe the next request's head                 | HEAD_TIMEOUT_S     | 408, closed                                 |
| send a body in crumbs                       | MIN_CHUNK_BYTES    | 400, closed                                 |
| leave an answer unread                      | UNREAD_TIMEOUT_S   | cut off                                     |
| send requests before their turn             | one read           | not read from, until they are answered      |
| be one of many                              | max_connections()  | the one idle for longest goes, or 503       |

h11 parses: it bounds heads and takes requests one at a time, where httptools copies a growing head again and again and
starts on every request of a read (ADR 15). A body's bytes and time are dipole.web.body_limit's to bound.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dipole.errors import ConfigurationError, InvalidInput, Overloaded
from dipole.protocol.problems import PROBLEM_JSON, make_problem
from dipole.protocol.schemas import Problem

MAX_HEAD_BYTES = 32 * 2**10
HEAD_TIMEOUT_S = 10.0
UNREAD_TIMEOUT_S = 60.0
MIN_CHUNK_BYTES = 16  # of a chunked body's on average, past the first FREE_CHUNKS: each costs microseconds
FREE_CHUNKS = 4096
MAX_CONNECTIONS = 2000
FILES_PER_CONNECTION = 2  # its socket, and a file that is sent or taken in


class _BoundedConnection(h11.Connection):
    """h11's parser, which refuses a body in crumbs."""

    _chunks = _chunked_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._chunked_bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._chunked_bytes // MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("a body in crumbs")
        elif isinstance(event, h11.EndOfMessage):
            self._chunks = self._chunked_bytes = 0
        return event


class BoundedProtocol(H11Protocol):
    """A connection. It is idle while the next move is the caller's: to send a whole head, or to hang up."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.transport: asyncio.Transport
        self.conn = _BoundedConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_idleness()
        if len(self.connections) > max_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_idle_timer()
        self._stop_unread_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_idleness()

    def on_response_complete(self) -> None:
        # the next request may have come already, and is begun here
        super().on_response_complete()
        self._watch_idleness()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self._unread_timer or self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            make_problem(
                400,
                f"this is not HTTP/1.1, its head exceeds {MAX_HEAD_BYTES} bytes, or its body comes in chunks too small",
                slug=InvalidInput.slug,
            )
        )

    def _watch_idleness(self) -> None:
        """The time for a head runs from when it is owed, however slowly it comes; an answer in the making stops it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_idle_timer()
        elif self._idle_timer is None and self in self.connections:
            self._idle_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_idleness)

    def _end_idleness(self) -> None:
        # uvicorn has closed it, yet what was written is not taken
        if self.transport.is_closing():
            self._idle_timer = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)
            return
        self._idle_timer = None
        self._refuse(
            make_problem(408, f"the request's head did not arrive within {HEAD_TIMEOUT_S:g} s", slug="head-timeout")
        )
        self._watch_idleness()

    def _make_room(self) -> None:
        """End the connection that has been idle for longest; when all others are at work, this one, with a 503."""
        others = [each for each in self.connections if isinstance(each, BoundedProtocol) and each is not self]
        idle = {each: each._idle_timer.when() for each in others if each._idle_timer}
        if idle:
            oldest = min(idle, key=idle.__getitem__)
            # at once: more may come before the loop tells that it is lost
            self.connections.discard(oldest)
            oldest._stop_idle_timer()
            return oldest.transport.abort()
        busy = Overloaded("every connection that this server takes is at work", retry_after=1)
        self._refuse(make_problem(busy.status, str(busy), slug=busy.slug), (b"retry-after", b"1"))

    def _refuse(self, problem: Problem, *headers: tuple[bytes, bytes]) -> None:
        """Answer for the app, where no other answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = problem.model_dump_json(exclude_none=True).encode()
            fields = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", str(len(body)).encode())]
            head = h11.Response(
                status_code=problem.status,
                headers=[*fields, *headers, (b"connection", b"close")],
                reason=problem.title.encode(),
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


def max_connections() -> int:
    """As many as this process may have files open for, within MAX_CONNECTIONS."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_PER_CONNECTION)


def bind_socket(host: str, port: int, chosen_by: str) -> socket.socket:
    """A socket for a server to listen on; 0 is any free port.

    Raises ConfigurationError, which names `chosen_by`, the option or setting that chooses another port.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigurationError(f"{host} is no address to listen on: {error.strerror}") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = (
            f"is taken by another program: stop that, or choose another port with {chosen_by}, where 0 takes a free one"
            if error.errno == errno.EADDRINUSE
            else f"cannot be listened on ({error.strerror}): choose another with {chosen_by}"
        )
        raise ConfigurationError(f"port {port} of {host} {why}") from error
    return bound


def tls_options(certificate: Path | None, key: Path | None, settings: tuple[str, str]) -> dict[str, Any]:
    """Options of `create_server` for HTTPS; none for HTTP. `settings` are the names of both settings. Raises
    ConfigurationError that names them.
    """
    if certificate is None and key is None:
        return {}
    if certificate is None or key is None:
        raise ConfigurationError(f"set {settings[0]} and {settings[1]}, or neither: a certificate needs its key")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=_refuse_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else error
        raise ConfigurationError(
            f"{settings[0]} {certificate} and {settings[1]} {key} are no certificate with its key: {why}"
        ) from error
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def _refuse_password() -> str:
    """OpenSSL would ask for it on a terminal."""
    raise ValueError("the key has a password")


def create_server(app: Any, *, host: str, port: int, timeout_graceful_shutdown: int, **options: Any) -> uvicorn.Server:
    """A server of `app`, which writes its own access log."""
    _raise_file_limit()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=timeout_graceful_shutdown,
        **options,
    )
    return uvicorn.Server(config)


def _raise_file_limit() -> None:
    """Many systems let a process open 1,024 files, and more when it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_PER_CONNECTION * MAX_CONNECTIONS
    if soft < wanted and hard != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
