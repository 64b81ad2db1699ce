"""Both halves, redis-py's and Celery's, on real servers: TCP, a socket, and TLS with a certificate of our own."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import trustme
from kombu import pools
from kombu.exceptions import OperationalError

from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.errors import ConfigurationError

PASSWORD = "p/:%;@ #?&+ü"
QUOTED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def server(
    redis_server: Callable[..., Any], tls_proxy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A Redis with a password on a port and on a socket, behind TLS in two ways, and where all of it is."""
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    with redis_server(folder, None, "--unixsocket", str(path)) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with redis.Redis(port=port) as client:
            client.config_set("requirepass", PASSWORD)
        right, wrong, strict = (_server_context(authority, name) for name in ("127.0.0.1", "elsewhere", "127.0.0.1"))
        strict.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(strict)
        tls, misnamed, mutual = (stack.enter_context(tls_proxy(each, port)) for each in (right, wrong, strict))
        yield {
            "port": port, "socket": path, "ca": folder / "ca.pem", "client": folder / "client.pem",
            "tls": tls, "misnamed": misnamed, "mutual": mutual,
        }  # fmt: skip


@pytest.fixture(autouse=True)
def _forget_connections() -> Iterator[None]:
    """kombu keeps connections in pools of the process, and does not tell two apart that differ in TLS alone."""
    yield
    pools.reset()


def _server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


REACHED = {
    "path": "redis://:{password}@127.0.0.1:{port}/3",
    "query": "redis://127.0.0.1:{port}?db=3&password={password}",
    "user": "redis://default:{password}@127.0.0.1:{port}/3",
    "unix": "unix://:{password}@{socket}?db=3",
    "unix query": "unix://{socket}?db=3&password={password}",
    "socket": "redis+socket://:{password}@{socket}?virtual_host=3",
    "verified": "rediss://:{password}@127.0.0.1:{tls}/3?ssl_ca_certs={ca}",
    "required": "rediss://:{password}@127.0.0.1:{tls}/3?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={ca}",
    "optional": "rediss://:{password}@127.0.0.1:{tls}/3?ssl_cert_reqs=optional&ssl_ca_certs={ca}",
    "none": "rediss://:{password}@127.0.0.1:{tls}/3?ssl_cert_reqs=none",
    "CERT_NONE": "rediss://:{password}@127.0.0.1:{misnamed}/3?ssl_cert_reqs=CERT_NONE",
    "any name": "rediss://:{password}@127.0.0.1:{misnamed}/3?ssl_ca_certs={ca}&ssl_check_hostname=false",
    "client": "rediss://:{password}@127.0.0.1:{mutual}/3?ssl_ca_certs={ca}&ssl_certfile={client}&ssl_keyfile={client}",
}

NOT_REACHED = {
    "no certificate said": "rediss://:{password}@127.0.0.1:{tls}/3",
    "another's certificate": "rediss://:{password}@127.0.0.1:{misnamed}/3?ssl_ca_certs={ca}",
}


@pytest.mark.parametrize("name", REACHED)
def test_both_halves_reach_the_same_database(server: dict[str, Any], name: str) -> None:
    """What redis-py wrote and what Celery sent lie side by side."""
    url = REACHED[name].format(password=QUOTED, **server)
    with connect_redis(url) as client, create_celery_app(url) as app:
        client.set(f"key {name}", "1")
        app.send_task("task", queue=f"queue {name}", retry=False)
    with redis.Redis(port=server["port"], password=PASSWORD, db=3) as control:
        assert control.get(f"key {name}") == b"1"
        assert control.llen(f"queue {name}") == 1


@pytest.mark.parametrize("name", NOT_REACHED)
def test_neither_half_speaks_to_a_server_that_nobody_vouches_for(server: dict[str, Any], name: str) -> None:
    """Both verify by default, and say so in the same words."""
    url = NOT_REACHED[name].format(password=QUOTED, **server)
    with connect_redis(url) as client, create_celery_app(url) as app:
        with pytest.raises(redis.ConnectionError) as ours:
            client.ping()
        with pytest.raises(OperationalError) as celerys:
            app.send_task("task", queue="queue", retry=False)
    for error in (ours, celerys):
        assert "certificate is not trusted" in describe_redis_error(error.value)


def test_certificates_that_are_none_are_a_settings_error(server: dict[str, Any], tmp_path: Path) -> None:
    """A file that is missing, is no certificate, or has no key: said once, at the start, with its name."""
    (tmp_path / "text.pem").write_text("text")
    for files in (
        f"ssl_ca_certs={tmp_path}/missing.pem",
        f"ssl_ca_certs={tmp_path}/text.pem",
        f"ssl_certfile={server['ca']}",
        f"ssl_certfile={server['client']}&ssl_keyfile={tmp_path}/missing.pem",
    ):
        for connect in (connect_redis, create_celery_app):
            with pytest.raises(ConfigurationError, match=r"DIPOLE_REDIS_URL: ssl_c.* cannot be used"):
                connect(f"rediss://127.0.0.1:{server['tls']}?{files}")


def test_a_redis_that_answers_is_not_said_to_be_silent(server: dict[str, Any]) -> None:
    """What it refuses is told in its words, with what helps, of Celery's half as of ours; silence is told as such."""

    def said(url: str) -> set[str]:
        with connect_redis(url) as client, create_celery_app(url) as app:
            with pytest.raises(redis.RedisError) as ours:
                client.set("key", "x" * 100)
            with pytest.raises(OperationalError) as celerys:
                app.send_task("task", queue="queue", retry=False)
        return {describe_redis_error(error.value) for error in (ours, celerys)}

    right = REACHED["path"].format(password=QUOTED, **server)
    (wrong_password,) = said(REACHED["path"].format(password="wrong", **server))
    assert wrong_password.startswith("Redis answers with an error (AuthenticationError: ")
    assert "user and password in DIPOLE_REDIS_URL" in wrong_password
    with redis.Redis(port=server["port"], password=PASSWORD) as control:
        control.config_set("maxmemory", "1")
        full = said(right)
        control.config_set("maxmemory", "0")
        control.acl_setuser("reader", enabled=True, passwords=["+word"], categories=["+@read"], keys=["*"])
    assert all("OutOfMemoryError" in each and "maxmemory" in each for each in full)
    denied = said(f"redis://reader:word@127.0.0.1:{server['port']}/3")
    assert all("NoPermissionError" in each and "the right to it" in each for each in denied)
    assert all(each.startswith("Redis does not answer (ConnectionError: ") for each in said("redis://127.0.0.1:1/0"))
