"""Who may ask: API keys as hashes; no open address without one; and without one no web page of another site."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Collection

from dipole.errors import ConfigurationError, DipoleError, Forbidden, Unauthorized
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
    if host.lower() == "localhost":
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


def refuse_foreign_page(scope: Scope) -> None:
    """Raise Forbidden for what a web page that is open in a browser here may send to a server without a key.

    The page's own name as Host (DNS rebinding), where the request came over loopback; and any request that a page of
    another site makes, as forms and multipart posts are sent without asking first. Following a link is no such request.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    address = (scope.get("server") or ("",))[0]
    if host and is_loopback(address) and not is_loopback(_host_without_port(host)):
        raise Forbidden(f"this server has no key and answers loopback only, not {_host_without_port(host)}: set a key")
    authority = "" if origin is None else origin.partition("://")[2]
    is_foreign = origin is not None and authority != host and not is_loopback(_host_without_port(authority))
    is_link = scope["method"] == "GET" and headers.get(b"sec-fetch-mode") == "navigate"
    if is_foreign or (headers.get(b"sec-fetch-site") == "cross-site" and not is_link):
        raise Forbidden("this server has no key and answers no page of another origin: set a key")


def _host_without_port(authority: str) -> str:
    """`[::1]:8400` -> `[::1]`, `localhost:8400` -> `localhost`."""
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


class RequestGuard(ABC):
    """Lets a request through that `check_request` has nothing against."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self.check_request(scope)
        except DipoleError as error:
            return await ProblemResponse(*problem_of(error))(scope, receive, send)
        await self.app(scope, receive, send)

    @abstractmethod
    def check_request(self, scope: Scope) -> None:
        """Raises Forbidden or Unauthorized."""


class KeyGuard(RequestGuard):
    """Lets a request through when its bearer key is one of `keys`; health stays open.

    Without keys everybody may, but for web pages of other sites.
    """

    def __init__(self, app: ASGIApp, *, keys: Collection[str], open_paths: Collection[str] = OPEN_PATHS) -> None:
        super().__init__(app)
        self.digests = [hash_key(key) for key in keys]
        self.open_paths = frozenset(open_paths)

    def check_request(self, scope: Scope) -> None:
        if not self.digests:
            return refuse_foreign_page(scope)
        digest = hash_key(bearer_key(scope) or "")
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if not any(matches) and scope["path"] not in self.open_paths:
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
