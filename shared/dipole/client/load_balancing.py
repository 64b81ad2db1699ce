"""Spreads requests over the copies of an endpoint: all the addresses that its host name stands for.

A headless Service in Kubernetes, or a scaled service in compose, answers its name with an address for each copy, of
which an HTTP client takes the first. This transport takes whichever has the fewest of our requests in flight. One that
nobody listens at is passed over for a while, and what was meant for it goes to the next: nothing has been sent to it.
A copy knows nothing of the others' pending rankings: copies that answer 202 must share them, as by a database.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import httpx

LOOK_S = 5.0  # between looks at what a name stands for
AWAY_S = 5.0  # for how long an address where nobody listened is asked last

Resolve = Callable[[str], list[str]]


def addresses(host: str) -> list[str]:
    """Every address of a host name, once; a literal one is its own.

    Raises httpx.ConnectError when there is none, NoNameServer when nobody tells.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        unknown = error.errno == socket.EAI_AGAIN
        raise (NoNameServer if unknown else httpx.ConnectError)(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class NoNameServer(httpx.ConnectError):
    """Whether a name stands for anything cannot be found out now."""


class Replicas(httpx.BaseTransport):
    """Sends each request through `inner` to the least busy copy. Thread-safe.

    A request keeps its Host header, and TLS the name that the certificate is for.
    """

    def __init__(self, inner: httpx.BaseTransport, *, resolve: Resolve = addresses, look_s: float = LOOK_S) -> None:
        self._inner, self._resolve, self._look_s = inner, resolve, look_s
        self._known: dict[str, tuple[float, list[str]]] = {}  # host -> (when to look again, addresses)
        self._in_flight: Counter[str] = Counter()
        self._served: Counter[str] = Counter()  # breaks ties: copies with equally much to do take turns
        self._away: dict[str, float] = {}  # address -> until when
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        began, copies = time.monotonic(), self._copies(request.url.host)
        while True:
            address, times = self._take(copies), _times_left(request, time.monotonic() - began)
            try:
                return self._send(request, address, times)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                copies = [copy for copy in copies if copy != address]
                with self._lock:
                    self._away[address] = time.monotonic() + AWAY_S
                if not copies or 0.0 in _times_left(request, time.monotonic() - began).values():
                    raise

    def close(self) -> None:
        self._inner.close()

    def _copies(self, host: str) -> list[str]:
        until, found = self._known.get(host, (0.0, []))
        if time.monotonic() >= until:
            try:
                found = self._resolve(host)
            except NoNameServer:
                if not found:
                    raise
            self._known[host] = (time.monotonic() + self._look_s, found)
        return found

    def _take(self, copies: list[str]) -> str:
        """The copy to ask, counted as asked until `_done`."""
        now = time.monotonic()
        with self._lock:
            address = min(copies, key=lambda a: (self._away.get(a, now) > now, self._in_flight[a], self._served[a]))
            self._in_flight[address] += 1
            self._served[address] += 1
        return address

    def _done(self, address: str) -> None:
        with self._lock:
            self._in_flight[address] -= 1

    def _send(self, request: httpx.Request, address: str, times: dict[str, float | None]) -> httpx.Response:
        extensions = {**request.extensions, "timeout": times, "sni_hostname": request.url.host}
        url = request.url.copy_with(host=address)
        sent = httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
        try:
            answer = self._inner.handle_request(sent)
        except BaseException:
            self._done(address)
            raise
        assert isinstance(answer.stream, httpx.SyncByteStream)
        body = _Body(answer.stream, partial(self._done, address))
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body, extensions=answer.extensions)


def _times_left(request: httpx.Request, passed: float) -> dict[str, float | None]:
    """A request's timeouts after so many seconds: the longest of them is the time that all copies have together."""
    times: dict[str, float | None] = request.extensions.get("timeout", {})
    whole = max((time for time in times.values() if time is not None), default=0.0)
    return {name: None if time is None else max(0.0, min(time, whole - passed)) for name, time in times.items()}


class _Body(httpx.SyncByteStream):
    """An answer's body that tells once when it has been read, or given up."""

    def __init__(self, inner: httpx.SyncByteStream, done: Callable[[], None]) -> None:
        self._inner, self._done, self._open = inner, done, True

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            if self._open:
                self._open = False
                self._done()
