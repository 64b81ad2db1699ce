"""DIPOLE_REDIS_URL: what is read in it, and what is refused with a sentence that holds no password."""

from __future__ import annotations

import ssl

import pytest
from celery.backends.base import DisabledBackend
from kombu.transport.redis import Channel

from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis
from dipole.errors import ConfigurationError
from dipole.redis_url import RedisAddress, parse_redis_url
from dipole.settings import PlatformSettings, load_settings

VERIFIED = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
UNVERIFIED = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}

READ = {
    "redis://": RedisAddress(),
    "redis://h": RedisAddress(host="h"),
    "redis://h:7/": RedisAddress(host="h", port=7),
    "REDIS://h:7/0\n": RedisAddress(host="h", port=7),
    "redis://h/3": RedisAddress(host="h", db=3),
    "redis://h?db=3": RedisAddress(host="h", db=3),
    "redis://h/3?db=3": RedisAddress(host="h", db=3),
    "redis://[::1]:7/1": RedisAddress(host="::1", port=7, db=1),
    "redis://:word@h": RedisAddress(host="h", password="word"),
    "redis://me:word@h": RedisAddress(host="h", username="me", password="word"),
    "redis://m%40e:%2F%3A%25%3B%20%23@h": RedisAddress(host="h", username="m@e", password="/:%; #"),
    "redis://h?username=me&password=w%26d": RedisAddress(host="h", username="me", password="w&d"),
    "unix:///run/redis.sock": RedisAddress(socket="/run/redis.sock"),
    "unix://me:word@/run/a%20b.sock?db=2": RedisAddress(
        socket="/run/a b.sock", db=2, username="me", password="word"
    ),
    "unix:///run/redis.sock?db=1&password=word": RedisAddress(socket="/run/redis.sock", db=1, password="word"),
    "redis+socket:///run/redis.sock?virtual_host=2": RedisAddress(socket="/run/redis.sock", db=2),
    "redis+socket://:w%2Fd@/run/redis.sock": RedisAddress(socket="/run/redis.sock", password="w/d"),
    "rediss://h": RedisAddress(host="h", tls=VERIFIED),
    "rediss://:word@h:7/2?ssl_cert_reqs=required": RedisAddress(
        host="h", port=7, db=2, password="word", tls=VERIFIED
    ),
    "rediss://h?ssl_cert_reqs=CERT_REQUIRED": RedisAddress(host="h", tls=VERIFIED),
    "rediss://h?ssl_cert_reqs=CERT_OPTIONAL": RedisAddress(
        host="h", tls={"ssl_cert_reqs": ssl.CERT_OPTIONAL, "ssl_check_hostname": True}
    ),
    "rediss://h?ssl_cert_reqs=none": RedisAddress(host="h", tls=UNVERIFIED),
    "rediss://h?ssl_cert_reqs=CERT_NONE": RedisAddress(host="h", tls=UNVERIFIED),
    "rediss://h?ssl_cert_reqs=None": RedisAddress(host="h", tls=UNVERIFIED),
    "rediss://h?ssl_check_hostname=False": RedisAddress(host="h", tls={**VERIFIED, "ssl_check_hostname": False}),
}  # fmt: skip

REFUSED = {
    "": "must begin with redis://",
    "127.0.0.1:6379": "must begin with redis://",
    "http://h": "must begin with redis://",
    "sentinel://h": "must begin with redis://",
    "redis://h:port": "is not a URL",
    "redis://:s3cr/et@h": "is not a URL",
    "redis://:s3cr#et@h": "is not a URL",
    "redis://h/0#1": "fragment",
    "redis://h:0": "port 0",
    "redis://h/name": "by its number",
    "redis://h/-1": "by its number",
    "redis://h/0;redis://i/0": "by its number",
    "redis://h/1?db=2": "more than one database",
    "redis://h?db=1&db=1": "more than once",
    "redis://h?socket_timeout=5": "unknown option 'socket_timeout'",
    "redis://h?ssl=true": "rediss:// alone has",
    "redis://h?ssl_cert_reqs=none": "rediss:// alone has",
    "unix:///run/redis.sock?ssl_cert_reqs=none": "rediss:// alone has",
    "unix://run/redis.sock": "three slashes",
    "unix://": "three slashes",
    "redis+socket://": "three slashes",
    "rediss://h?ssl_cert_reqs=maybe": "required, optional or none",
    "rediss://h?ssl_check_hostname=perhaps": "true or false",
    "rediss://h?ssl_ca_certs=": "nothing for ssl_ca_certs",
    "rediss://h?ssl_keyfile=/key": "ssl_keyfile without ssl_certfile",
    "rediss://h?ssl_sni=x": "unknown option 'ssl_sni'",
}


@pytest.mark.parametrize("url", READ)
def test_a_url_is_read(url: str) -> None:
    """Certificates are verified unless a URL says that they are not."""
    assert parse_redis_url(url) == READ[url]


@pytest.mark.parametrize("url", READ)
def test_both_libraries_get_the_same(url: str) -> None:
    """What kombu makes of the broker's URL and options is what redis-py was given."""

    class UnconnectedChannel(Channel):  # type: ignore[misc]
        def __init__(self, client: object) -> None:
            self.connection = type("Transport", (), {"client": client, "default_port": 6379})

    with create_celery_app(url) as app, connect_redis(url) as client:
        kombus, ours = UnconnectedChannel(app.connection_for_write())._connparams(), client.connection_pool
        assert kombus["connection_class"] is ours.connection_class
        names = ["host", "port", "path", "db", "username", "password", "ssl_cert_reqs", "ssl_check_hostname"]
        assert {name: kombus.get(name) for name in names} == {name: ours.connection_kwargs.get(name) for name in names}


@pytest.mark.parametrize("url", REFUSED)
def test_what_both_cannot_be_given_is_a_settings_error(url: str) -> None:
    """It names the setting, when settings are loaded as when something connects, and never what may be a password."""
    for refused in (
        lambda: load_settings(PlatformSettings, redis_url=url),
        lambda: connect_redis(url),
        lambda: create_celery_app(url),
    ):
        with pytest.raises(ConfigurationError, match="DIPOLE_REDIS_URL") as error:
            refused()
        assert REFUSED[url] in str(error.value)
        assert "s3cr" not in str(error.value)


def test_celerys_own_variable_moves_no_half_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's Celery on this machine may have CELERY_BROKER_URL; it is not ours."""
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, "redis://elsewhere:1/9")
    with create_celery_app("redis://here:2/3") as app:
        for connection in (app.connection_for_read(), app.connection_for_write()):
            assert (connection.hostname, connection.port, connection.virtual_host) == ("here", 2, "3")
        assert isinstance(app.backend, DisabledBackend)


def test_an_address_is_shown_without_its_password() -> None:
    """As `dipole up` lists it."""
    for url in ("rediss://me:word@h:7/2?ssl_password=word", "unix://me:word@/run/redis.sock?db=2"):
        address = parse_redis_url(url)
        assert "word" not in f"{address} {address!r}"
        assert parse_redis_url(str(address)).db == 2
