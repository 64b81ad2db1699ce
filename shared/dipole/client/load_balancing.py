"""Spreads requests over the copies of an endpoint: all the addresses that its host name stands for.

A headless Service in Kubernetes, or a scaled service in compose, answers its name with an address for each copy, of
which an HTTP client takes the first. This transport takes whichever has the fewest of our requests in flight. One that
nobody listens at is passed over for a while, and what was meant for it goes to the next: nothing has been sent to it.
A copy knows nothing of the others' pending rankings: copies that answer 202 must share them, as by a database.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import httpx

RESOLVE_INTERVAL_S = 5.0  # between looks at what a name stands for
UNREACHABLE_S = 5.0  # for how long an address where nobody listened is asked last

ResolveHost = Callable[[str], list[str]]


def resolve_host(host: str) -> list[str]:
    """Every address of a host name, once; a literal one is its own.

    Raises httpx.ConnectError when there is none, NameServerUnavailable when nobody tells.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        unknown = error.errno == socket.EAI_AGAIN
        raise (NameServerUnavailable if unknown else httpx.ConnectError)(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class NameServerUnavailable(httpx.ConnectError):
    """Whether a name stands for anything cannot be found out now."""


class LeastBusyTransport(httpx.BaseTransport):
    """Sends each request through `inner` to the least busy copy. Thread-safe.

    A request keeps its Host header, and TLS the name that the certificate is for.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        *,
        resolve: ResolveHost = resolve_host,
        resolve_interval_s: float = RESOLVE_INTERVAL_S,
    ) -> None:
        self._inner, self._resolve, self._resolve_interval_s = inner, resolve, resolve_interval_s
        self._resolved: dict[str, tuple[float, list[str]]] = {}  # host -> (when to look again, addresses)
        self._in_flight: Counter[str] = Counter()
        # breaks ties: copies with equally much to do take turns
        self._requests_served: Counter[str] = Counter()
        # breaks what ties are left: rank workers, which know nothing of each other, begin with different copies
        self._own_order: defaultdict[str, float] = defaultdict(random.random)
        self._unreachable_until: dict[str, float] = {}  # address -> until when
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        began, copies = time.monotonic(), self._resolve_replicas(request.url.host)
        while True:
            address, times = self._acquire_replica(copies), _remaining_timeouts(request, time.monotonic() - began)
            try:
                return self._send_to(request, address, times)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                copies = [copy for copy in copies if copy != address]
                with self._lock:
                    self._unreachable_until[address] = time.monotonic() + UNREACHABLE_S
                if not copies or 0.0 in _remaining_timeouts(request, time.monotonic() - began).values():
                    raise

    def close(self) -> None:
        self._inner.close()

    def _resolve_replicas(self, host: str) -> list[str]:
        until, found = self._resolved.get(host, (0.0, []))
        if time.monotonic() >= until:
            try:
                found = self._resolve(host)
            except NameServerUnavailable:
                if not found:
                    raise
            self._resolved[host] = (time.monotonic() + self._resolve_interval_s, found)
        return found

    def _acquire_replica(self, copies: list[str]) -> str:
        """The copy to ask, counted as asked until `_release_replica`."""
        now = time.monotonic()
        with self._lock:
            address = min(copies, key=lambda copy: self._preference(copy, now))
            self._in_flight[address] += 1
            self._requests_served[address] += 1
        return address

    def _preference(self, address: str, now: float) -> tuple[bool, int, int, float]:
        """The lower, the better."""
        is_unreachable = self._unreachable_until.get(address, now) > now
        return is_unreachable, self._in_flight[address], self._requests_served[address], self._own_order[address]

    def _release_replica(self, address: str) -> None:
        with self._lock:
            self._in_flight[address] -= 1

    def _send_to(self, request: httpx.Request, address: str, times: dict[str, float | None]) -> httpx.Response:
        extensions = {**request.extensions, "timeout": times, "sni_hostname": request.url.host}
        url = request.url.copy_with(host=address)
        sent = httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
        try:
            answer = self._inner.handle_request(sent)
        except BaseException:
            self._release_replica(address)
            raise
        assert isinstance(answer.stream, httpx.SyncByteStream)
        body = _ReleasingBody(answer.stream, partial(self._release_replica, address))
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body, extensions=answer.extensions)


def _remaining_timeouts(request: httpx.Request, passed: float) -> dict[str, float | None]:
    """A request's timeouts after so many seconds: the longest of them is the time that all copies have together."""
    times: dict[str, float | None] = request.extensions.get("timeout", {})
    whole = max((time for time in times.values() if time is not None), default=0.0)
    return {name: None if time is None else max(0.0, min(time, whole - passed)) for name, time in times.items()}


class _ReleasingBody(httpx.SyncByteStream):
    """An answer's body that tells once when it has been read, or given up."""

    def __init__(self, inner: httpx.SyncByteStream, release: Callable[[], None]) -> None:
        self._inner, self._release, self._is_open = inner, release, True

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            if self._is_open:
                self._is_open = False
                self._release()
