"""The outbox: callbacks that are owed, tried with growing pauses, given up after a day, sent again by hand.

The row was written with the task's end, so a callback is owed however the process ends. Whoever sends one first pushes
its next try into the future, so that replicas do not send it twice at once; a receiver knows a repeat by its id.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from dipole import webhooks
from dipole.database.queries import require
from dipole_ratings.database.tables import DeliveryRow, TaskRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.task_results import RankingState, ranking_of_task

LISTED = 200


@dataclass(frozen=True)
class DueDelivery:
    id: str
    url: str
    state: RankingState


@dataclass(frozen=True)
class DeliveryState:
    """`state` is waiting, delivered or given_up."""

    id: str
    ranking: str
    url: str
    state: str
    attempts: int
    next_at: float | None
    last_error: str | None
    created_at: float
    delivered_at: float | None


class CallbackOutbox:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    def take_due(self, limit: int = 10) -> list[DueDelivery]:
        """What is to be sent now, claimed for this process."""
        with self.context.database.reading() as session:
            if session.scalar(select(DeliveryRow.seq).where(_is_due(self.context.clock(session))).limit(1)) is None:
                return []
        with self.context.database.writing() as session:
            time = self.context.clock(session)
            query = (
                select(DeliveryRow, TaskRow)
                .join(TaskRow, TaskRow.seq == DeliveryRow.task_seq)
                .where(_is_due(time))
                .order_by(DeliveryRow.next_at)
                .limit(limit)
                .with_for_update(of=DeliveryRow, skip_locked=True)
            )
            found = []
            for delivery, task in session.execute(query):
                delivery.next_at, delivery.attempts = time + webhooks.CLAIM_S, delivery.attempts + 1
                found.append(DueDelivery(delivery.id, delivery.url, ranking_of_task(task, self.context.settings)))
            return found

    def record_attempt(self, delivery_id: str, error: str | None) -> None:
        """It arrived, or why not: then it is tried again, or given up."""
        with self.context.database.writing() as session:
            delivery = _find_delivery(session, delivery_id)
            time = self.context.clock(session)
            delivery.last_error = None if error is None else error[:500]
            if error is None:
                delivery.state, delivery.delivered_at = "delivered", time
            elif (pause := webhooks.pause_after(delivery.attempts)) is not None:
                delivery.next_at = time + pause
            else:
                delivery.state = "given_up"

    def resend(self, delivery_id: str) -> DeliveryState:
        """Send it at the next look, whatever became of it before. Raises NotFound."""
        with self.context.database.writing() as session:
            delivery = _find_delivery(session, delivery_id)
            delivery.state, delivery.next_at, delivery.attempts = "waiting", self.context.clock(session), 0
            task = session.scalars(select(TaskRow).where(TaskRow.seq == delivery.task_seq)).one()
            return _delivery_state(delivery, task)

    def list_deliveries(self) -> list[DeliveryState]:
        """The newest first, a bounded number."""
        query = (
            select(DeliveryRow, TaskRow)
            .join(TaskRow, TaskRow.seq == DeliveryRow.task_seq)
            .order_by(DeliveryRow.seq.desc())
            .limit(LISTED)
        )
        with self.context.database.reading() as session:
            return [_delivery_state(delivery, task) for delivery, task in session.execute(query)]

    def count_deliveries(self) -> dict[str, int]:
        """By state."""
        query = select(DeliveryRow.state, func.count()).group_by(DeliveryRow.state)
        with self.context.database.reading() as session:
            found = dict(session.execute(query).all())
        return {state: found.get(state, 0) for state in ("waiting", "delivered", "given_up")}


def _is_due(time: float) -> ColumnElement[bool]:
    return and_(DeliveryRow.state == "waiting", DeliveryRow.next_at <= time)


def _find_delivery(session: Session, delivery_id: str) -> DeliveryRow:
    query = select(DeliveryRow).where(DeliveryRow.id == delivery_id).with_for_update()
    return require(session.scalar(query), delivery_id, "delivery")


def _delivery_state(delivery: DeliveryRow, task: TaskRow) -> DeliveryState:
    return DeliveryState(
        id=delivery.id,
        ranking=task.id,
        url=delivery.url,
        state=delivery.state,
        attempts=delivery.attempts,
        next_at=delivery.next_at if delivery.state == "waiting" else None,
        last_error=delivery.last_error,
        created_at=delivery.created_at,
        delivered_at=delivery.delivered_at,
    )
