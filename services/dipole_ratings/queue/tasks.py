"""Tasks: taken from trainers, answered from what was rated before, cancelled, and closed when they are due."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from dipole.database.queries import require
from dipole.errors import Conflict, Overloaded
from dipole.protocol.schemas import PendingRanking
from dipole_ratings.aggregation.answers import subsets
from dipole_ratings.database.tables import JobPriorityRow, SubsetRow, TaskImageRow, TaskRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.images import StoredImage, store_images
from dipole_ratings.queue.settlement import end_task, score_task
from dipole_ratings.queue.task_options import TaskOptions
from dipole_ratings.queue.task_results import RankingState, cancelled_ranking, ranking_of_task
from dipole_rewards.server.idempotency import refuse_reused_key

LOST_STATES = ("failed", "cancelled")
FULL_RETRY_S = 60.0
ONE_IMAGE = "A single image, or the same one over and over, leaves people nothing to compare."


@dataclass(frozen=True)
class TaskRequest:
    """A decoded request. `images` are those of `candidate_ids`, in their order; `digest` is the whole request's."""

    prompt: str
    candidate_ids: Sequence[str]
    images: Sequence[StoredImage]
    options: TaskOptions
    job: str
    digest: str
    idempotency_key: str | None = None
    callback_url: str | None = None
    promise: bool = False  # the caller asked to be answered later: it gets a 202, and its callback, in any case


class RatingTasks:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    def submit_task(self, request: TaskRequest) -> RankingState:
        """A new task, the one that came under the same key before, or the scores of an equal one that was rated.

        Raises InvalidInput for a key that came with another request, Overloaded when too many tasks wait.
        """
        try:
            return self._submit_once(request)
        except IntegrityError:
            # another replica took the same key, or dropped an image of ours, since we looked
            return self._submit_once(request)

    def _submit_once(self, request: TaskRequest) -> RankingState:
        least, most = request.options.ratings_wanted(self.context.settings)
        with self.context.database.writing() as session:
            if (known := _find_repeat(session, request)) is not None:
                return ranking_of_task(known, self.context.settings)
            self._check_room(session)
            time = self.context.clock(session)
            task = self._add_task(session, request, least, most, time)
            session.flush()
            if task.images == 1:
                task.code, task.reason = "one_image", ONE_IMAGE
            elif not _reuse_scores(session, task):
                return PendingRanking(id=task.id)
            end_task(session, task, "completed", time, call_back=request.promise)
            return PendingRanking(id=task.id) if request.promise else ranking_of_task(task, self.context.settings)

    def get_ranking(self, task_id: str) -> RankingState:
        """Raises NotFound."""
        self.close_due_tasks(task_id)
        with self.context.database.reading() as session:
            task = session.scalar(select(TaskRow).where(TaskRow.id == task_id))
            return ranking_of_task(require(task, task_id, "ranking"), self.context.settings)

    def cancel_task(self, task_id: str) -> PendingRanking:
        """Raises NotFound, or Conflict when it has finished. Answers so far are kept, leases on it count no more."""
        with self.context.database.writing() as session:
            task = lock_task(session, TaskRow.id == task_id)
            task = require(task, task_id, "ranking")
            if task.state in ("completed", "failed"):
                raise Conflict(f"ranking {task_id!r} has finished and cannot be cancelled")
            if task.state == "pending":
                task.state, task.finished_at, task.complete_at = "cancelled", self.context.clock(session), None
            return cancelled_ranking(task)

    def close_due_tasks(self, task_id: str | None = None, *, limit: int = 100) -> int:
        """Deliver what has answers enough and can be undone no more, or has an equal task's; end what is past its
        deadline. How many.
        """
        closed = 0
        with self.context.database.reading() as session:
            due = _is_due(self.context.clock(session))
            if task_id is not None:
                due = and_(due, TaskRow.id == task_id)
            found = session.scalars(select(TaskRow.seq).where(due).order_by(TaskRow.seq).limit(limit)).all()
        for seq in found:
            with self.context.database.writing() as session:
                task = lock_task(session, TaskRow.seq == seq, skip_locked=task_id is None)
                if task is not None:
                    closed += self._close_task(session, task)
        return closed

    def _close_task(self, session: Session, task: TaskRow) -> bool:
        """Under the task's lock: what was read before it is looked at again."""
        time = self.context.clock(session)
        if task.state != "pending":
            return False
        if task.complete_at is None and _reuse_scores(session, task):
            end_task(session, task, "completed", time)
            return True
        is_complete = has_expired(task.complete_at, time)
        if not (is_complete or has_expired(task.deadline, time)):
            return False
        drops = task.on_timeout == "drop"
        if drops and task.complete_at is None:
            task.code, task.reason = "deadline", "The deadline came before there were answers enough."
            end_task(session, task, "failed", time)
        else:
            score_task(session, task, unclear="drop" if drops or is_complete else "partial")
            end_task(session, task, "completed", time)
        return True

    def _check_room(self, session: Session) -> None:
        limit = self.context.settings.ratings_max_pending
        if (session.scalar(select(func.count()).where(TaskRow.state == "pending")) or 0) >= limit:
            raise Overloaded(f"{limit} groups wait for raters already", retry_after=FULL_RETRY_S)

    def _add_task(self, session: Session, request: TaskRequest, least: int, most: int, time: float) -> TaskRow:
        options, settings = request.options, self.context.settings
        distinct = list({image.sha256: image for image in request.images}.values())
        store_images(session, distinct)
        positions = {image.sha256: position for position, image in enumerate(distinct)}
        priority = session.scalar(select(JobPriorityRow.priority).where(JobPriorityRow.job == request.job))
        task = TaskRow(
            id=f"rank_{secrets.token_hex(16)}",
            job=request.job,
            priority=priority if priority is not None else options.priority or 0,
            prompt=request.prompt,
            instructions=options.instructions,
            candidates=[
                [name, positions[image.sha256]]
                for name, image in zip(request.candidate_ids, request.images, strict=True)
            ],
            images=len(distinct),
            content=digest_content(request.prompt, options.instructions, sorted(positions)),
            min_ratings=least,
            max_ratings=most,
            target=least,
            deadline=time + (options.deadline_s or settings.ratings_deadline_s),
            on_timeout=options.on_timeout or settings.ratings_on_timeout,
            state="pending",
            callback_url=request.callback_url,
            idempotency_key=request.idempotency_key,
            request_digest=request.digest,
            created_at=time,
        )
        session.add(task)
        session.flush()
        session.add_all(
            TaskImageRow(task_seq=task.seq, position=position, sha256=sha256) for sha256, position in positions.items()
        )
        if len(distinct) > 1:
            session.add_all(
                SubsetRow(task_seq=task.seq, positions=list(each))
                for each in subsets(len(distinct), settings.ratings_images_shown)
            )
        return task


def digest_content(prompt: str, instructions: str | None, digests: Sequence[str]) -> str:
    """Equal where people were asked the same: prompt, instructions and images."""
    found = hashlib.sha256(repr((prompt, instructions or "", *digests)).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def lock_task(session: Session, which: ColumnElement[bool], *, skip_locked: bool = False) -> TaskRow | None:
    return session.scalar(select(TaskRow).where(which).with_for_update(skip_locked=skip_locked))


def has_expired(moment: float | None, time: float) -> bool:
    return moment is not None and moment <= time


def _is_due(time: float) -> ColumnElement[bool]:
    other = aliased(TaskRow)
    is_rated = and_(TaskRow.complete_at.is_(None), exists().where(_is_rated(other, TaskRow)))
    return and_(TaskRow.state == "pending", or_(TaskRow.complete_at <= time, TaskRow.deadline <= time, is_rated))


def _find_repeat(session: Session, request: TaskRequest) -> TaskRow | None:
    """The task that came under this key and still gives a result; one that is lost gives the key free."""
    if request.idempotency_key is None:
        return None
    known = lock_task(session, TaskRow.idempotency_key == request.idempotency_key)
    if known is None:
        return None
    if known.state in LOST_STATES:
        known.idempotency_key = None
        session.flush()
        return None
    if known.request_digest != request.digest:
        raise refuse_reused_key(request.idempotency_key)
    return known


def _is_rated(other: type[TaskRow], task: TaskRow | type[TaskRow]) -> ColumnElement[bool]:
    """Whether people ordered the same images for the same prompt in it, as often as is asked for now."""
    return and_(
        other.content == task.content, other.state == "completed", other.seq != task.seq, other.code.is_(None),
        other.ratings >= task.min_ratings,
    )  # fmt: skip


def _reuse_scores(session: Session, task: TaskRow) -> bool:
    """Give a task the scores of the latest one that answers it; whether there is one."""
    found = select(TaskRow).where(_is_rated(TaskRow, task)).order_by(TaskRow.seq.desc()).limit(1)
    equal = session.scalar(found)
    if equal is None:
        return False
    task.scores, task.reused = _reorder_scores(session, equal, task), True
    task.agreement, task.ratings = equal.agreement, equal.ratings
    return True


def _reorder_scores(session: Session, source: TaskRow, target: TaskRow) -> list[float | None]:
    """The scores of one task at the positions that the same images have in another."""
    assert source.scores is not None
    known = {image.sha256: source.scores[image.position] for image in _images_of(session, source)}
    return [known[image.sha256] for image in _images_of(session, target)]


def _images_of(session: Session, task: TaskRow) -> Sequence[TaskImageRow]:
    return session.scalars(
        select(TaskImageRow).where(TaskImageRow.task_seq == task.seq).order_by(TaskImageRow.position)
    ).all()
