"""Who may call which route: keys and their scopes."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a key's id and name, what it may do, and its hash."""

    id: str
    name: str
    scopes: frozenset[str]
    digest: str


LOOPBACK = Caller("loopback", "loopback", frozenset({"admin"}), "loopback")
ANONYMOUS = Caller("anonymous", "anonymous", frozenset(), "anonymous")
SETTINGS_KEY = "DIPOLE_API_KEY"


class AuthenticationMiddleware:
    """Finds the caller. Without any key, on loopback, everybody on this machine is admin.

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
                scope["dipole.caller"] = await self._find_caller(scope)
        except (DipoleError, SQLAlchemyError) as error:
            await answer_error(None, error)(scope, receive, send)
            return None
        return await self.app(scope, receive, send)

    async def _find_caller(self, scope: asgi.Scope) -> Caller:
        if self.is_open:
            return LOOPBACK
        key = auth.bearer_key(scope)
        digest = auth.hash_key(key or "")
        if any(hmac.compare_digest(digest, known) for known in self.admin_digests):
            return Caller(SETTINGS_KEY, SETTINGS_KEY, frozenset({"admin"}), digest)
        found = await run_in_threadpool(self.api_keys.find_key, digest) if key else None
        if found is None or not found.scopes:
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        return Caller(found.id, found.name, frozenset(found.scopes), digest)


def require_scope(scope: KeyScope) -> Any:
    """A route's dependency: the caller has this scope, or is admin."""

    def check_scope(request: Request) -> None:
        caller: Caller = request.scope["dipole.caller"]
        if not caller.scopes & {scope, "admin"}:
            raise Forbidden(f"this key lacks the scope `{scope}`")

    return Depends(check_scope)
