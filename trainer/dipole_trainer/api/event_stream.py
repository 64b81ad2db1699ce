"""A job's events as server-sent events: what was missed first, then what comes, until the job has ended."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from dipole_trainer.api import schemas
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.database.tables import TERMINAL_STATES

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
PING_INTERVAL_S = 15.0
# query at least this often, even without a notification: PostgreSQL may commit a lower event id after a higher one
MAX_WAIT_S = 5.0


async def stream_events(
    state: ApiState, job_id: str, cursor: int, *, ping_s: float = PING_INTERVAL_S
) -> AsyncIterator[bytes]:
    """The stream after `cursor`. The job's state is read before its events, which commit together with it."""
    quiet_since = time.monotonic()
    # headers reach the caller at once, also through proxies that wait for a first byte
    yield KEEPALIVE_COMMENT
    while True:
        job = await run_in_threadpool(state.jobs.get_job, job_id)
        events = await run_in_threadpool(state.jobs.events_since, job_id, cursor)
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
                min(MAX_WAIT_S, max(0.01, ping_s - (time.monotonic() - quiet_since)))
            )
