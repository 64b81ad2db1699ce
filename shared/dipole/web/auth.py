"""Who may ask: API keys as hashes, and no open address without one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection

from dipole.errors import ConfigurationError, Unauthorized
from dipole.protocol.problems import problem_of
from dipole.web.asgi import ASGIApp, ProblemResponse, Receive, Scope, Send

OPEN_PATHS = ("/livez", "/readyz", "/metrics")


def hash_key(key: str) -> str:
    """What is stored and compared instead of a key. Keys are long and random, so one SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def bearer_key(scope: Scope) -> str | None:
    """The key of `Authorization: Bearer …`, if there is one."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" and key.strip() else None
    return None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open_host(host: str, key: object | None, setting: str) -> None:
    """A server that others can reach needs a key that is not empty. Raises ConfigurationError that says what to set."""
    if not key and not is_loopback(host):
        raise ConfigurationError(
            f"refusing to listen on {host} without a key: set {setting}, or listen on 127.0.0.1 where none is needed"
        )


class KeyGuard:
    """Lets a request through when its bearer key is one of `keys`. Without keys everybody may; health stays open."""

    def __init__(self, app: ASGIApp, *, keys: Collection[str], open_paths: Collection[str] = OPEN_PATHS) -> None:
        self.app = app
        self.digests = [hash_key(key) for key in keys]
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.digests or scope["path"] in self.open_paths:
            return await self.app(scope, receive, send)
        digest = hash_key(bearer_key(scope) or "")
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if any(matches):
            return await self.app(scope, receive, send)
        error = Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        await ProblemResponse(*problem_of(error))(scope, receive, send)
