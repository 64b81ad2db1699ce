"""Who may call which route: keys and their scopes."""

from __future__ import annotations

import hmac
from typing import Any

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from dipole.errors import DipoleError, Forbidden, Unauthorized
from dipole.settings import split_keys
from dipole.web import asgi, auth
from dipole_trainer.api.errors import answer_error
from dipole_trainer.dashboard.pages import is_page_path
from dipole_trainer.registry.api_keys import ApiKeys, KeyScope


class AuthenticationMiddleware:
    """Finds the caller's scopes. Without any key, on loopback, everybody on this machine is admin.

    Then a web page open in a browser here must not be (dipole.web.auth.refuse_foreign_page).
    """

    def __init__(self, app: asgi.ASGIApp, *, key: str | None, api_keys: ApiKeys, is_open: bool) -> None:
        self.app, self.api_keys, self.is_open = app, api_keys, is_open
        self.admin_digests = [auth.hash_key(key) for key in split_keys(key)]

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            if self.is_open:
                auth.refuse_foreign_page(scope)
            if scope["path"] not in auth.OPEN_PATHS and not is_page_path(scope["path"]):
                scope["dipole.scopes"] = await self._scopes(scope)
        except (DipoleError, SQLAlchemyError) as error:
            await answer_error(None, error)(scope, receive, send)
            return None
        return await self.app(scope, receive, send)

    async def _scopes(self, scope: asgi.Scope) -> frozenset[str]:
        if self.is_open:
            return frozenset({"admin"})
        key = auth.bearer_key(scope)
        digest = auth.hash_key(key or "")
        if any(hmac.compare_digest(digest, known) for known in self.admin_digests):
            return frozenset({"admin"})
        found = await run_in_threadpool(self.api_keys.key_scopes, digest) if key else frozenset[str]()
        if not found:
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        return found


def require_scope(scope: KeyScope) -> Any:
    """A route's dependency: the caller has this scope, or is admin."""

    def check_scope(request: Request) -> None:
        held = request.scope["dipole.scopes"]
        if not held & {scope, "admin"}:
            raise Forbidden(f"this key lacks the scope `{scope}`")

    return Depends(check_scope)
