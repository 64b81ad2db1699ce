"""Sockets whose reads and writes end when the exchange they belong to has to, however slowly its bytes come.

    transport = sockets.transport(verify=True, limits=limits)
    with sockets.ending_in(5.0):
        httpx.Client(transport=transport).get(url)              # TimeoutException after five seconds

httpx bounds each read by itself: from a server that sends a byte of a header now and then it reads for hours.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

SOON_S = 0.001  # for what is over: a socket takes 0 for "do not wait", which is another error

_ends: ContextVar[float] = ContextVar("ends", default=math.inf)  # by the monotonic clock


@contextmanager
def ending_in(seconds: float) -> Iterator[None]:
    """Whatever this thread reads or writes inside ends by then, through a `transport` of this module."""
    token = _ends.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


def transport(*, verify: ssl.SSLContext | bool, limits: httpx.Limits) -> httpx.HTTPTransport:
    """httpx's own, without proxies of the environment, over sockets that end."""
    made = httpx.HTTPTransport(verify=verify, limits=limits, trust_env=False)
    made._pool._network_backend = _Backend()  # it takes no backend
    return made


class _Backend(httpcore.SyncBackend):
    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(*args, **kwargs))


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _bounded(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _bounded(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _bounded(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _bounded(timeout: float | None) -> float | None:
    left = max(SOON_S, min(math.inf if timeout is None else timeout, _ends.get() - time.monotonic()))
    return None if left == math.inf else left
