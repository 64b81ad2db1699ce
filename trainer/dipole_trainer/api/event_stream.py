"""A job's events as server-sent events: what was missed first, then what comes, until the job has ended.

Streams are many and idle: they have a few threads of their own for what they read, and their number is bounded, so that
requests neither wait for their threads nor for their connections to the database.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from anyio import WouldBlock, to_thread
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from dipole.errors import Overloaded
from dipole_trainer.api import schemas
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.database.tables import TERMINAL_STATES, EventRow, JobRow

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
PING_INTERVAL_S = 15.0
# query at least this often, even without a notification: PostgreSQL may commit a lower event id after a higher one
MAX_WAIT_S = 5.0
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


async def read_for_stream(
    state: ApiState, job_id: str, cursor: int, *, limit: int = 500
) -> tuple[JobRow, Sequence[EventRow]]:
    """The job, and its events after `cursor`. The job's state is read before its events, which commit with it."""
    return await to_thread.run_sync(
        lambda: (state.jobs.get_job(job_id), state.jobs.events_since(job_id, cursor, limit=limit)),
        limiter=state.stream_threads,
    )


async def stream_events(
    state: ApiState, job_id: str, cursor: int, *, ping_s: float = PING_INTERVAL_S
) -> AsyncIterator[bytes]:
    """The stream after `cursor`."""
    quiet_since = time.monotonic()
    # headers reach the caller at once, also through proxies that wait for a first byte
    yield KEEPALIVE_COMMENT
    while True:
        job, events = await read_for_stream(state, job_id, cursor)
        for event in events:
            cursor = event.id
            text = schemas.show_row(event, schemas.to_event_object).model_dump_json()
            yield format_sse_event(data_str=text, event=event.kind, id=str(event.id))
        if events:
            quiet_since = time.monotonic()
        elif job.state in TERMINAL_STATES:
            return
        elif time.monotonic() - quiet_since >= ping_s:
            yield KEEPALIVE_COMMENT
            quiet_since = time.monotonic()
        else:
            await state.event_notifier.wait_for_change(
                job_id, min(MAX_WAIT_S, max(0.01, ping_s - (time.monotonic() - quiet_since)))
            )
