"""Sockets whose reads and writes end when the exchange they belong to has to, however slowly its bytes come.

    transport = DeadlineTransport(verify=True, limits=limits)
    with deadline(5.0):
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

MIN_TIMEOUT_S = 0.001  # for what is over: a socket takes 0 for "do not wait", which is another error

_ends_at: ContextVar[float] = ContextVar("ends", default=math.inf)  # by the monotonic clock


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Whatever this thread reads or writes inside ends by then, through a DeadlineTransport."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


class DeadlineTransport(httpx.BaseTransport):
    """HTTP/1.1 over sockets that end: what httpx.HTTPTransport does, on a pool whose network backend is ours.

    No proxy of the environment is used. Raises httpx's exceptions.
    """

    def __init__(self, *, verify: ssl.SSLContext | bool, limits: httpx.Limits) -> None:
        self._connections = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify, trust_env=False),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_DeadlineBackend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        with _as_httpx_errors():
            response = self._connections.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_CoreResponseBody(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._connections.close()


class _CoreResponseBody(httpx.SyncByteStream):
    """A response's bytes as they come."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx_errors():
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    """httpcore's exceptions as httpx's, which have the same names."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
    except httpcore.UnsupportedProtocol as error:
        raise httpx.UnsupportedProtocol(str(error)) from error


class _DeadlineBackend(httpcore.SyncBackend):
    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _DeadlineStream(super().connect_tcp(*args, **kwargs))


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _bounded_timeout(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # a view, because the rest of what a socket takes in part is sliced off again and again
        self._inner.write(memoryview(buffer), _bounded_timeout(timeout))  # type: ignore[arg-type]

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _bounded_timeout(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _bounded_timeout(timeout: float | None) -> float | None:
    left = max(MIN_TIMEOUT_S, min(math.inf if timeout is None else timeout, _ends_at.get() - time.monotonic()))
    return None if left == math.inf else left
