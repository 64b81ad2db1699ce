"""The outbox of webhooks: told of a job's end are the URLs in its `notify`, however the process ends that ended it.

A row is written in the transaction that ends the job (transitions.py), and sent by any API process
(api/webhook_sender.py): at least once, with growing pauses, and given up after a day. Whoever sends one first moves its
next attempt into the future, so that replicas do not send it twice at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import and_, select

from dipole.database.queries import database_time
from dipole.protocol import job_events
from dipole.protocol.job_events import JobEvent
from dipole.webhooks import CLAIM_S, pause_after
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import JobRow, WebhookRow
from dipole_trainer.jobs.transitions import record_event

MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class DueWebhook:
    """One that is to be sent now; `created_at` is when the job ended, which became `ending` then."""

    id: str
    job_id: str
    ending: str
    url: str
    created_at: float

    def body(self) -> str:
        """An event as OpenAI's webhooks have it; the job itself is for whoever holds a key to ask for."""
        event: dict[str, Any] = {
            "object": "event",
            "id": self.id,
            "type": f"fine_tuning.job.{self.ending}",
            "created_at": int(self.created_at),
            "data": {"id": self.job_id},
        }
        return json.dumps(event)


class WebhookOutbox:
    """The rows that are owed, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def take_due(self, limit: int = 10) -> list[DueWebhook]:
        """What is to be sent now, claimed for this process."""
        due = and_(WebhookRow.state == "waiting", WebhookRow.next_at <= now())
        # asked often: do not take SQLite's write lock for it
        with self.database.reading() as session:
            if session.scalar(select(WebhookRow.seq).where(due).limit(1)) is None:
                return []
        with self.database.writing() as session:
            time = database_time(session)
            query = select(WebhookRow).where(due).order_by(WebhookRow.next_at).limit(limit)
            rows = session.scalars(query.with_for_update(skip_locked=True)).all()
            for row in rows:
                row.next_at, row.attempts = time + CLAIM_S, row.attempts + 1
            return [DueWebhook(row.id, row.job_id, row.ending, row.url, row.created_at) for row in rows]

    def record_attempt(self, webhook_id: str, reason: str | None, *, is_final: bool = False) -> None:
        """It arrived, or why not: then it is tried again, or given up, at once where it `is_final`."""
        with self.database.writing() as session:
            row = session.scalars(select(WebhookRow).where(WebhookRow.id == webhook_id).with_for_update()).one()
            pause = None if reason is None or is_final else pause_after(row.attempts)
            if pause is not None:
                row.next_at = database_time(session) + pause
                return
            # locked as by everybody who writes events, so that a job's ids commit in order
            job = session.scalars(select(JobRow).where(JobRow.id == row.job_id).with_for_update()).one()
            told: dict[str, Any] = {
                "webhook": row.id,
                "attempts": row.attempts,
                "host": urlsplit(row.url).hostname or "",
            }
            event: JobEvent = job_events.WebhookDelivered(**told)
            if reason is not None:
                event = job_events.WebhookGivenUp(**told, reason=reason[:MAX_REASON_CHARS])
            row.state = "delivered" if reason is None else "given_up"
            record_event(session, job, event)
