"""DIPOLE_REDIS_URL, read once for both libraries that connect with it: redis-py, and Celery's kombu.

    redis://[[user]:[password]@]host[:port][/db]       rediss://… the same over TLS
    unix://[[user]:[password]@]/path/to/socket[?db=]   redis+socket://… the same, as kombu spells it

Left to themselves they read it in two ways: of `rediss://` without options one verifies certificates and the other does
not, `unix://` and `redis+socket://` are known to one each, and a spelling that one does not know is an error in the
midst of work. What cannot be given to both is refused here.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT_PORT = 6379
SOCKET_SCHEMES = ("unix", "redis+socket")
SCHEMES = ("redis", "rediss", *SOCKET_SCHEMES)
CREDENTIALS = ("username", "password")
TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = ("ssl_cert_reqs", "ssl_check_hostname", "ssl_password", *TLS_FILES)
CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is and how it is reached. `str()` of it is for people: it has no password."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    socket: str | None = None  # path of a Unix socket, instead of host and port
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)  # redis-py's arguments; None: no TLS

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix://{self.socket}?db={self.db}"
        return f"redis{'' if self.tls is None else 's'}://{self.netloc}/{self.db}"

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Raises ValueError with what is wrong, and with nothing of the URL that may be a password."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise ValueError(
            "is not a URL: write / ? # [ ] @ of a user name or password as %2F %3F %23 %5B %5D %40"
        ) from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{scheme}://' for scheme in SCHEMES[:-1])} or {SCHEMES[-1]}://")
    if port == 0:
        raise ValueError("names the port 0, on which nothing listens")
    if parts.fragment:
        raise ValueError("may have no fragment: write # of a user name or password as %23")
    options = _parse_query(parts.query, parts.scheme)
    shared: dict[str, Any] = {
        "username": unquote(parts.username or "") or options.get("username") or None,
        "password": unquote(parts.password or "") or options.get("password") or None,
    }
    if parts.scheme in SOCKET_SCHEMES:
        if parts.hostname or port or not parts.path.strip("/"):
            raise ValueError(f"names a socket by its path: {parts.scheme}:///path/to/redis.sock, with three slashes")
        return RedisAddress(socket=unquote(parts.path), db=_choose_db("", options), **shared)
    return RedisAddress(
        host=unquote(parts.hostname or "") or RedisAddress.host,
        port=port or DEFAULT_PORT,
        db=_choose_db(unquote(parts.path).strip("/"), options),
        tls=_tls_arguments(options) if parts.scheme == "rediss" else None,
        **shared,
    )


def _parse_query(query: str, scheme: str) -> dict[str, str]:
    known = {
        "redis": ("db", "virtual_host", *CREDENTIALS),
        "rediss": ("db", "virtual_host", *CREDENTIALS, *TLS_OPTIONS),
    }.get(scheme, ("db", "virtual_host", *CREDENTIALS))
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, _ in pairs:
        if name.startswith("ssl") and scheme != "rediss":
            raise ValueError(f"has the option {name[:40]}, which rediss:// alone has: begin with that")
        if name not in known:
            raise ValueError(f"has the unknown option {name[:40]!r}: {scheme}:// takes {', '.join(known)}")
        if [each for each, _ in pairs].count(name) > 1:
            raise ValueError(f"has the option {name} more than once")
    return dict(pairs)


def _choose_db(path: str, options: Mapping[str, str]) -> int:
    """The database's number, which the path or either option says."""
    said = {name: text for name, text in (("path", path), *options.items()) if name in ("path", "db", "virtual_host")}
    numbers = {text.strip("/") for text in said.values()} - {""}
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ValueError("must name a database by its number, as /0 or ?db=0")
    if len({int(number) for number in numbers}) > 1:
        raise ValueError("names more than one database")
    return int(numbers.pop()) if numbers else 0


def _tls_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """Certificates are verified unless they are said not to be."""
    said = options.get("ssl_cert_reqs", "required").lower().removeprefix("ssl.").removeprefix("cert_")
    if said not in CERT_REQS:
        raise ValueError("ssl_cert_reqs must be required, optional or none")
    checked = options.get("ssl_check_hostname", "true").lower()
    if checked not in BOOLEANS:
        raise ValueError("ssl_check_hostname must be true or false")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("has ssl_keyfile without ssl_certfile")
    files = {name: text for name, text in options.items() if name in (*TLS_FILES, "ssl_password")}
    if empty := [name for name, text in files.items() if not text]:
        raise ValueError(f"has nothing for {empty[0]}")
    verified = CERT_REQS[said]
    return {
        **files,
        "ssl_cert_reqs": verified,
        "ssl_check_hostname": BOOLEANS[checked] and verified is not ssl.CERT_NONE,
    }
