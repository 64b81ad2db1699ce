"""Who may call which route: keys and their scopes, and no other site's web page."""

from __future__ import annotations

import hmac
from typing import Any

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from dipole.errors import DipoleError, Forbidden, Unauthorized
from dipole.web import asgi, auth
from dipole_trainer.api.errors import answer_error
from dipole_trainer.registry.api_keys import ApiKeys, KeyScope


class AuthenticationMiddleware:
    """Finds the caller's scopes. Without any key, on loopback, everybody on this machine is admin.

    Then a web page open in a browser here must not be: requests that name another host (DNS rebinding) or come from
    another origin (a form that posts to 127.0.0.1) are refused.
    """

    def __init__(self, app: asgi.ASGIApp, *, key: str | None, api_keys: ApiKeys, is_open: bool) -> None:
        self.app, self.api_keys, self.is_open = app, api_keys, is_open
        self.admin_digest = auth.hash_key(key) if key else None

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http" or scope["path"] in auth.OPEN_PATHS:
            return await self.app(scope, receive, send)
        try:
            scope["dipole.scopes"] = await self._scopes(scope)
        except (DipoleError, SQLAlchemyError) as error:
            await answer_error(None, error)(scope, receive, send)
            return None
        return await self.app(scope, receive, send)

    async def _scopes(self, scope: asgi.Scope) -> frozenset[str]:
        if self.is_open:
            _refuse_foreign_pages({name: value.decode("latin-1") for name, value in scope["headers"]})
            return frozenset({"admin"})
        key = auth.bearer_key(scope)
        digest = auth.hash_key(key or "")
        if self.admin_digest is not None and hmac.compare_digest(digest, self.admin_digest):
            return frozenset({"admin"})
        found = await run_in_threadpool(self.api_keys.key_scopes, digest) if key else frozenset[str]()
        if not found:
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        return found


def _refuse_foreign_pages(headers: dict[bytes, str]) -> None:
    host = _host_without_port(headers.get(b"host", ""))
    origin = headers.get(b"origin")
    if host and not auth.is_loopback(host):
        raise Forbidden(f"this server has no key and answers loopback only, not {host}: set DIPOLE_API_KEY")
    if origin is not None and not auth.is_loopback(_host_without_port(origin.partition("://")[2])):
        raise Forbidden("this server has no key and answers no page of another origin: set DIPOLE_API_KEY")


def _host_without_port(authority: str) -> str:
    """`[::1]:8400` -> `[::1]`, `localhost:8400` -> `localhost`."""
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


def require_scope(scope: KeyScope) -> Any:
    """A route's dependency: the caller has this scope, or is admin."""

    def check_scope(request: Request) -> None:
        held = request.scope["dipole.scopes"]
        if not held & {scope, "admin"}:
            raise Forbidden(f"this key lacks the scope `{scope}`")

    return Depends(check_scope)
