"""A job's events as server-sent events: what was missed first, then what comes, until the job has ended.

Streams are many and idle: they have a few threads of their own for what they read, and their number is bounded, so that
requests neither wait for their threads nor for their connections to the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from anyio import CapacityLimiter, WouldBlock, to_thread
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from dipole.database.failures import AWAY_ERRORS, describe_database_error
from dipole.errors import Overloaded
from dipole_trainer.api import schemas
from dipole_trainer.database.tables import TERMINAL_STATES, EventRow, JobRow
from dipole_trainer.jobs.store import JobStore

if TYPE_CHECKING:
    from dipole_trainer.api.dependencies import ApiState

log = structlog.get_logger()

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
PING_INTERVAL_S = 15.0
PAGE = 500
RETRY_S = 1.0  # between looks while the database is away
RETRY_AFTER_S = 10.0


class EventStreamResponse(StreamingResponse):
    """The stream as an answer; a 503 when as many as may be are open."""

    def __init__(self, state: ApiState, job_id: str, cursor: int) -> None:
        super().__init__(stream_events(state, job_id, cursor), media_type="text/event-stream", headers=STREAM_HEADERS)
        self._open_streams = state.open_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._open_streams.acquire_on_behalf_of_nowait(self)
        except WouldBlock:
            limit = int(self._open_streams.total_tokens)
            raise Overloaded(
                f"{limit} event streams are open already (DIPOLE_API_MAX_STREAMS)", retry_after=RETRY_AFTER_S
            ) from None
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._open_streams.release_on_behalf_of(self)


@dataclass(frozen=True)
class EventRead:
    """What one look found: events as they are sent, by id, and whether none is to come."""

    chunks: Sequence[tuple[int, bytes]]
    is_over: bool


class EventReader:
    """Reads for streams in a few threads. Streams of one job that ask for the same at the same time share a read."""

    def __init__(self, jobs: JobStore, threads: CapacityLimiter) -> None:
        self._jobs, self._threads = jobs, threads
        self._running: dict[tuple[str, int], asyncio.Task[EventRead]] = {}

    async def has_more(self, job_id: str, cursor: int) -> bool:
        """Whether there are events after `cursor`, or may be. Raises NotFound."""
        job, events = await self._read_rows(job_id, cursor, limit=1)
        return bool(events) or job.state not in TERMINAL_STATES

    async def read_events(self, job_id: str, cursor: int) -> EventRead:
        """A page of the job's events after `cursor`. Raises NotFound."""
        asked = job_id, cursor
        if (task := self._running.get(asked)) is None:
            task = self._running[asked] = asyncio.create_task(self._read_chunks(job_id, cursor))
            task.add_done_callback(lambda _: self._running.pop(asked))
        return await asyncio.shield(task)  # a stream that is closed takes nothing from the others

    async def _read_chunks(self, job_id: str, cursor: int) -> EventRead:
        job, events = await self._read_rows(job_id, cursor, limit=PAGE)
        return EventRead([(event.id, _format(event)) for event in events], not events and job.state in TERMINAL_STATES)

    async def _read_rows(self, job_id: str, cursor: int, *, limit: int) -> tuple[JobRow, Sequence[EventRow]]:
        """The job's state is read before its events, which commit with it."""
        return await to_thread.run_sync(
            lambda: (self._jobs.get_job(job_id), self._jobs.events_since(job_id, cursor, limit=limit)),
            limiter=self._threads,
        )


def _format(event: EventRow) -> bytes:
    text = schemas.show_row(event, schemas.to_event_object).model_dump_json()
    return format_sse_event(data_str=text, event=event.kind, id=str(event.id))


async def stream_events(
    state: ApiState, job_id: str, cursor: int, *, ping_s: float = PING_INTERVAL_S
) -> AsyncIterator[bytes]:
    """The stream after `cursor`."""
    # headers reach the caller at once, also through proxies that wait for a first byte
    yield KEEPALIVE_COMMENT
    while True:
        try:
            found = await state.event_reader.read_events(job_id, cursor)
        except AWAY_ERRORS as error:
            log.warning("stream_waits_for_database", job_id=job_id, error=describe_database_error(error))
            yield KEEPALIVE_COMMENT
            await asyncio.sleep(RETRY_S)
            continue
        for event_id, chunk in found.chunks:
            cursor = event_id
            yield chunk
        if found.is_over:
            return
        while not found.chunks and not await state.event_notifier.wait_for_change(job_id, cursor, ping_s):
            yield KEEPALIVE_COMMENT
