"""Connections to Redis, and what their errors mean. Celery's are in celery_app.py, of the same reading of the URL."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import PythonRespSerializer
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from dipole.errors import ConfigurationError
from dipole.redis_url import RedisAddress, parse_redis_url

MIN_UNCOPIED_BYTES = 6000  # a longer value is sent from where it lies
MAX_BLOCKING_READ_S = 5.0  # longest single blocking read, below the socket timeout

# answers that are no silence, and what helps
SERVER_ERRORS: dict[type[Exception], str] = {
    OutOfMemoryError: "give it more memory (its setting maxmemory)",
    AuthenticationError: "mend the user and password in DIPOLE_REDIS_URL",
    AuthorizationError: "mend the user and password in DIPOLE_REDIS_URL",
    NoPermissionError: "give the user of DIPOLE_REDIS_URL the right to it",
    ReadOnlyError: "DIPOLE_REDIS_URL must name the primary",
    BusyLoadingError: "it is starting",
    ResponseError: "its log may say more",
}


def connect_redis(
    redis_url: str, *, connect_timeout_s: float = 5, timeout_s: float = MAX_BLOCKING_READ_S + 10
) -> redis.Redis:
    """A Redis client whose calls end: by default five seconds to connect, fifteen for any answer, and no second try.

    Raises ConfigurationError for a URL, or certificates that it names, that are none. Answers are parsed by hiredis;
    commands are not packed by it, because it copies a group's megabytes twice.
    """
    address = check_redis_address(redis_url)
    client = redis.Redis(
        host=address.host,
        port=address.port,
        unix_socket_path=address.socket,
        db=address.db,
        username=address.username,
        password=address.password,
        ssl=address.tls is not None,
        **(address.tls or {}),
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=timeout_s,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 0),
    )
    packer = PythonRespSerializer(MIN_UNCOPIED_BYTES, client.get_encoder().encode)
    client.connection_pool.connection_kwargs["command_packer"] = packer
    return client


def describe_redis_error(error: Exception) -> str:
    """What happened: that Redis does not answer, or what it answers. Of kombu's errors the cause is told."""
    found: BaseException = error
    while not isinstance(found, RedisError) and found.__cause__ is not None:
        found = found.__cause__
    said = f"{type(found).__name__}: {found}"
    if isinstance(found.__context__, ssl.SSLCertVerificationError):
        return (
            f"Redis's certificate is not trusted ({said}): DIPOLE_REDIS_URL names its host, and its CA as ssl_ca_certs"
        )
    for kind, help_ in SERVER_ERRORS.items():
        if isinstance(found, kind):
            return f"Redis answers with an error ({said}): {help_}"
    return f"Redis does not answer ({said})"


def check_redis_address(redis_url: str) -> RedisAddress:
    """Where Redis is. Raises ConfigurationError for a URL, or certificates that it names, that are none."""
    try:
        address = parse_redis_url(redis_url)
    except ValueError as error:
        raise ConfigurationError(f"DIPOLE_REDIS_URL: {error}") from None
    if address.tls is not None:
        _check_tls_files(address.tls)
    return address


def _check_tls_files(tls: Mapping[str, Any]) -> None:
    """Load them once, so that a wrong one is a sentence at the start and not an outage."""
    named = ", ".join(f"{name}={tls[name]}" for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile") if name in tls)
    try:
        context = ssl.create_default_context(cafile=tls.get("ssl_ca_certs"), capath=tls.get("ssl_ca_path"))
        if "ssl_certfile" in tls:
            context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"), tls.get("ssl_password") or "")
    except OSError as error:
        raise ConfigurationError(f"DIPOLE_REDIS_URL: {named} cannot be used: {error}") from None
