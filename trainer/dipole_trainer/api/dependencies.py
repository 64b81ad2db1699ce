"""What every route of the API works with, and how a request proves that it may.

Parts          the stores behind the routes, made once by create_app
Authenticate   ASGI: who calls, decided before any body is read; 401 without a valid key
needs(scope)   a dependency of a route: 403 without the scope
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from fastapi import Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from dipole import web
from dipole.errors import DipoleError, Forbidden, Unauthorized
from dipole.settings import ApiSettings
from dipole_trainer.api.event_notifier import EventWatch
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.ranking_ledger import Ledger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.registry import Catalogue, KeyScope
from dipole_trainer.storage.artifacts import Artifacts


@dataclass(frozen=True)
class Parts:
    settings: ApiSettings
    database: Database
    jobs: JobStore
    catalogue: Catalogue
    ledger: Ledger
    artifacts: Artifacts
    watch: EventWatch
    reward_transport: httpx.BaseTransport | None


def _parts(request: Request) -> Parts:
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


Use = Annotated[Parts, Depends(_parts)]
JobId = Annotated[str, Path(max_length=64, description="The job's id.", examples=["ftjob-0b5e7f2c9a4d1e8f63b7c2a5"])]


class Page(BaseModel):
    """Cursor pagination, as OpenAI's: `after` is the id of the last object of the page before."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(default=None, max_length=64, description="Id of the last object already seen.")
    limit: int = Field(default=20, ge=1, le=100, description="Objects a page.")


class Authenticate:
    """Finds the caller's scopes. Without any key, on loopback, everybody on this machine is admin.

    Then a web page open in a browser here must not be: requests that name another host (DNS rebinding) or come from
    another origin (a form that posts to 127.0.0.1) are refused.
    """

    def __init__(self, app: web.ASGIApp, *, key: str | None, catalogue: Catalogue, is_open: bool) -> None:
        self.app, self.catalogue, self.is_open = app, catalogue, is_open
        self.admin = web.key_digest(key) if key else None

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        if scope["type"] != "http" or scope["path"] in web.OPEN_PATHS:
            return await self.app(scope, receive, send)
        try:
            scope["dipole.scopes"] = await self._scopes(scope)
        except DipoleError as error:
            return await web.ProblemResponse(*web.problem_of(error))(scope, receive, send)
        return await self.app(scope, receive, send)

    async def _scopes(self, scope: web.Scope) -> frozenset[str]:
        if self.is_open:
            _refuse_foreign_pages({name: value.decode("latin-1") for name, value in scope["headers"]})
            return frozenset({"admin"})
        key = web.bearer(scope)
        digest = web.key_digest(key or "")
        if self.admin is not None and hmac.compare_digest(digest, self.admin):
            return frozenset({"admin"})
        found = await run_in_threadpool(self.catalogue.scopes_of, digest) if key else frozenset[str]()
        if not found:
            raise Unauthorized("a valid key is needed: send `Authorization: Bearer <key>`")
        return found


def _refuse_foreign_pages(headers: dict[bytes, str]) -> None:
    host = _host_of(headers.get(b"host", ""))
    origin = headers.get(b"origin")
    if host and not web.is_loopback(host):
        raise Forbidden(f"this server has no key and answers loopback only, not {host}: set DIPOLE_API_KEY")
    if origin is not None and not web.is_loopback(_host_of(origin.partition("://")[2])):
        raise Forbidden("this server has no key and answers no page of another origin: set DIPOLE_API_KEY")


def _host_of(authority: str) -> str:
    """`[::1]:8400` -> `[::1]`, `localhost:8400` -> `localhost`."""
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


def needs(scope: KeyScope) -> Any:
    """A route's dependency: the caller has this scope, or is admin."""

    def check(request: Request) -> None:
        held = request.scope["dipole.scopes"]
        if not held & {scope, "admin"}:
            raise Forbidden(f"this key lacks the scope `{scope}`")

    return Depends(check)
