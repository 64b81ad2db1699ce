"""/v1/audit, and the middleware that writes it: every request that may change something, also a refused one.

An entry is written before its answer is sent, so that whoever reads the answer finds it. Where the database is away the
entry is in the log alone, under `audit_not_written`. Of requests without a valid key, and of those of a key that asks
too often, each process keeps REFUSED_LIMIT: they are an attack, and the log shall outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Query
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from dipole.database.failures import describe_database_error
from dipole.errors import InvalidInput
from dipole.web import asgi, background
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import ANONYMOUS, Caller, require_scope
from dipole_trainer.api.dependencies import PageQuery, State
from dipole_trainer.database.tables import AuditRow
from dipole_trainer.registry.audit_log import AuditEntry, AuditLog

log = structlog.get_logger()
router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[require_scope("admin")])

READING = ("GET", "HEAD", "OPTIONS")
REFUSED_LIMIT = parse("60/minute")
CHANGES_NOTHING = "changes_nothing"
RouteT = TypeVar("RouteT", bound=Callable[..., Any])
MAX_PATH_CHARS, MAX_METHOD_CHARS = 1024, 16  # of what a caller may make up
PRUNE_INTERVAL_S = 3600.0
ID_PREFIX = "audit-"
_JOB_IN_PATH = re.compile(r"/v1/fine_tuning/jobs/([A-Za-z0-9_-]{1,64})(?:/|$)")


def changes_nothing(route: RouteT) -> RouteT:
    """Mark what a POST only asks: pages do so every few seconds. It has an entry where its caller may not ask it."""
    setattr(route, CHANGES_NOTHING, True)
    return route


class AuditObject(schemas.ApiModel):
    """A request that may have changed something, and what was answered."""

    object: str = Field(default="audit.entry", description="What kind of object this is.")
    id: str = Field(description="Id of the entry.")
    created_at: int = Field(description="When it was answered, in Unix seconds.")
    caller: str = Field(
        description="Id of the caller's key; `DIPOLE_API_KEY` for that setting's, `loopback` where no key is set, and "
        "`anonymous` without a valid one."
    )
    caller_name: str = Field(description="Name that the key was given.")
    method: str = Field(description="Method of the request.")
    path: str = Field(description="Path of the request, without its query.")
    job_id: str | None = Field(description="Id of the job that it was about.")
    request_id: str = Field(description="The answer's X-Request-ID, which log lines have too.")
    status: int = Field(description="Status of the answer; 400 to 499 changed nothing.")


class AuditPageQuery(PageQuery):
    """Pagination of the audit log."""

    job_id: str | None = Field(default=None, max_length=64, description="Only what was about this job.")


@router.get("", summary="List who changed what, newest first")
def list_audit(
    state: State, page: Annotated[AuditPageQuery, Query()]
) -> schemas.Paged[AuditObject | schemas.UnreadableObject]:
    """The list has every request that may have changed something, also those that were refused."""
    number = (page.after or f"{ID_PREFIX}0").removeprefix(ID_PREFIX)
    if not re.fullmatch(r"[0-9]{1,18}", number):
        raise InvalidInput("after must be the id of an entry", field="after")
    after = None if page.after is None else int(number)
    rows, more = state.audit_log.list_entries(after=after, limit=page.limit, job_id=page.job_id)
    return schemas.page_of(schemas.show_rows(rows, _to_audit_object), more)


def _to_audit_object(row: AuditRow) -> AuditObject:
    told = {name: getattr(row, name) for name in AuditEntry.__dataclass_fields__}
    return AuditObject(id=f"{ID_PREFIX}{row.seq}", created_at=int(row.created_at), **told)


class AuditMiddleware:
    """ASGI, around whatever decides about a request: it writes down who asked and what was answered."""

    def __init__(self, app: asgi.ASGIApp, *, audit_log: AuditLog) -> None:
        self.app, self.audit_log = app, audit_log
        self._refused = FixedWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            return await self.app(scope, receive, send)
        is_written = False

        async def audited_send(message: asgi.Message) -> None:
            nonlocal is_written
            if message["type"] == "http.response.start":
                is_written = True
                await self._write_entry(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, receive, audited_send)
        except Exception:
            if not is_written:
                await self._write_entry(scope, 500)
            raise

    async def _write_entry(self, scope: asgi.Scope, status: int) -> None:
        caller: Caller = scope.get("dipole.caller", ANONYMOUS)
        if status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and hasattr(
            scope.get("endpoint"), CHANGES_NOTHING
        ):
            return
        may_be_many = caller is ANONYMOUS or status == HTTPStatus.TOO_MANY_REQUESTS
        if may_be_many and not self._refused.hit(REFUSED_LIMIT, caller.id):
            return
        named = _JOB_IN_PATH.match(scope["path"])
        entry = AuditEntry(
            caller=caller.id,
            caller_name=caller.name,
            method=scope["method"][:MAX_METHOD_CHARS],
            path=scope["path"].replace("\0", "")[:MAX_PATH_CHARS],
            job_id=scope.get("dipole.job_id") or (named and named[1]),
            request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
            status=status,
        )
        try:
            await run_in_threadpool(self.audit_log.add_entry, entry)
        except SQLAlchemyError as error:
            log.warning("audit_not_written", **asdict(entry), error=describe_database_error(error))


@contextlib.asynccontextmanager
async def run_in_background(audit_log: AuditLog, days: int) -> AsyncIterator[None]:
    """While inside, old entries are deleted now and then."""

    async def prune_forever() -> None:
        while True:
            try:
                await background.finish_in_thread(audit_log.prune, days=days)
            except SQLAlchemyError as error:
                log.warning("database_unreachable", error=describe_database_error(error))
            await asyncio.sleep(PRUNE_INTERVAL_S)

    async with background.run_in_background(prune_forever()):
        yield
