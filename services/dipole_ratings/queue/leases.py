"""Leases: who looks at which images, in which order, until when. In one transaction: live leases + answers ≤ target.

PostgreSQL: the rater's row, then a task's, are locked; a task that another replica works on is passed over, and places
are counted again once the lock is held. SQLite: a writing transaction is alone.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from dipole.errors import Forbidden, Gone, NotFound
from dipole_ratings.database.tables import (
    AnswerRow,
    ImageRow,
    LeaseRow,
    RaterRow,
    ShownImageRow,
    SubsetRow,
    TaskImageRow,
    TaskRow,
)
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.settlement import count_places, is_counted, is_live

LABELS = "ABCDEF"
MAX_TRIES = 20  # tasks that fill up between being found and being locked
GOLD_AGREEMENT, GOLD_RATINGS, GOLD_WINDOW = 0.6, 2, 200  # mean τ-b and raters of what counts as known; latest tasks
REPEAT_AFTER = 5  # answers that lie between the first time and the next


@dataclass(frozen=True)
class ShownImage:
    id: str
    label: str
    width: int
    height: int


@dataclass(frozen=True)
class TakenLease:
    """All that a rater is told. `is_new` is false for the lease that the rater held already."""

    id: str
    expires_at: float
    expires_in_s: float
    prompt: str
    instructions: str | None
    images: Sequence[ShownImage]
    is_new: bool


class RatingLeases:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    def take_lease(self, rater_seq: int) -> TakenLease | None:
        """The rater's live lease, or a new one on the task that is wanted first; None where nothing is to be done.

        Raises Forbidden for a rater who is paused.
        """
        with self.context.database.writing() as session:
            rater = lock_working_rater(session, rater_seq)
            time = self.context.clock(session)
            held = self._find_held(session, rater, time)
            if held is not None:
                return self.describe_lease(session, held, time, is_new=False)
            found = self._find_work(session, rater, time)
            if found is None:
                return None
            subset, purpose = found
            lease = self._grant_lease(session, rater, subset, purpose, time)
            return self.describe_lease(session, lease, time, is_new=True)

    def extend_lease(self, rater_seq: int, lease_id: str) -> tuple[float, float]:
        """A sign of life: (until when the lease holds now, in how many seconds). Raises NotFound or Gone."""
        with self.context.database.writing() as session:
            lock_rater(session, rater_seq)
            lease = find_lease(session, rater_seq, lease_id)
            time = self.context.clock(session)
            if lease.ended_at is not None or lease.expires_at <= time:
                raise lease_gone()
            settings = self.context.settings
            longest = lease.granted_at + settings.ratings_lease_max_s
            lease.expires_at = max(lease.expires_at, min(time + settings.ratings_lease_s, longest))
            return lease.expires_at, lease.expires_at - time

    def release_lease(self, rater_seq: int, lease_id: str | None = None) -> None:
        """Give a lease back, or all that the rater holds; one that ended already is fine. Raises NotFound."""
        with self.context.database.writing() as session:
            lock_rater(session, rater_seq)
            time = self.context.clock(session)
            if lease_id is not None:
                find_lease(session, rater_seq, lease_id)
            end_leases(session, rater_seq, time, lease_id)

    def count_waiting(self, rater_seq: int) -> int:
        """Subsets that this rater could be given now."""
        with self.context.database.reading() as session:
            found = _find_open(rater_seq, self.context.clock(session)).with_only_columns(func.count()).order_by(None)
            return session.scalar(found) or 0

    def get_image(self, rater_seq: int, image_id: str) -> bytes:
        """A PNG that this rater was shown. Raises NotFound."""
        query = (
            select(ImageRow.png)
            .join(ShownImageRow, ShownImageRow.sha256 == ImageRow.sha256)
            .join(LeaseRow, LeaseRow.seq == ShownImageRow.lease_seq)
            .where(ShownImageRow.id == image_id, LeaseRow.rater_seq == rater_seq)
        )
        with self.context.database.reading() as session:
            png = session.scalar(query)
        if png is None:
            raise NotFound("there is no such image")
        return png

    def describe_lease(self, session: Session, lease: LeaseRow, time: float, *, is_new: bool) -> TakenLease:
        task = session.scalars(
            select(TaskRow).join(SubsetRow, SubsetRow.task_seq == TaskRow.seq).where(SubsetRow.seq == lease.subset_seq)
        ).one()
        rows = session.execute(
            select(ShownImageRow.id, ShownImageRow.place, ImageRow.width, ImageRow.height)
            .join(ImageRow, ImageRow.sha256 == ShownImageRow.sha256)
            .where(ShownImageRow.lease_seq == lease.seq)
            .order_by(ShownImageRow.place)
        )
        return TakenLease(
            id=lease.id,
            expires_at=lease.expires_at,
            expires_in_s=lease.expires_at - time,
            prompt=task.prompt,
            instructions=task.instructions,
            images=[ShownImage(image, LABELS[place], width, height) for image, place, width, height in rows],
            is_new=is_new,
        )

    # ---- what to give

    def _find_held(self, session: Session, rater: RaterRow, time: float) -> LeaseRow | None:
        """A lease on a task that ended meanwhile is given back: nobody waits for its answer."""
        held = session.scalar(
            select(LeaseRow)
            .where(LeaseRow.rater_seq == rater.seq, LeaseRow.ended_at.is_(None), LeaseRow.expires_at > time)
            .order_by(LeaseRow.seq.desc())
            .limit(1)
        )
        if held is None or held.purpose != "task" or _is_wanted(session, held):
            return held
        held.ended_at = time
        return None

    def _find_work(self, session: Session, rater: RaterRow, time: float) -> tuple[SubsetRow, str] | None:
        """A subset and its purpose. Gold and repeats only while tasks wait, so that nobody is kept busy with them."""
        open_tasks = _find_open(rater.seq, time)
        share, settings = self.context.dice.random(), self.context.settings
        if share < settings.ratings_gold_share + settings.ratings_repeat_share:
            if session.scalar(open_tasks.with_only_columns(SubsetRow.seq).limit(1)) is None:
                return None
            kinds = [("gold", self._find_gold), ("repeat", self._find_repeat)]
            # where there is none of one kind, the other serves as well
            for purpose, find in kinds if share < settings.ratings_gold_share else kinds[::-1]:
                if (found := find(session, rater)) is not None:
                    return found, purpose
        full: list[int] = []
        for _ in range(MAX_TRIES):
            query = open_tasks.where(SubsetRow.seq.not_in(full)).limit(1)
            row = session.execute(query.with_for_update(of=TaskRow, skip_locked=True)).first()
            if row is None:
                return None
            subset, task = row
            session.refresh(task)
            if task.state == "pending" and count_places(session, subset.seq, time) < task.target:
                return subset, "task"
            full.append(subset.seq)
        return None

    def _find_gold(self, session: Session, rater: RaterRow) -> SubsetRow | None:
        """Of a task on which others agreed, and of which this rater has seen nothing."""
        seen = exists().where(
            LeaseRow.subset_seq.in_(select(SubsetRow.seq).where(SubsetRow.task_seq == TaskRow.seq).correlate(TaskRow)),
            LeaseRow.rater_seq == rater.seq,
        )
        known = (
            select(TaskRow.seq)
            .where(
                TaskRow.state == "completed", TaskRow.code.is_(None), TaskRow.reused.is_(False),
                TaskRow.agreement >= GOLD_AGREEMENT, TaskRow.ratings >= GOLD_RATINGS, ~seen,
            )
            .order_by(TaskRow.seq.desc())
            .limit(GOLD_WINDOW)
        )  # fmt: skip
        tasks = session.scalars(known).all()
        if not tasks:
            return None
        subsets = session.scalars(
            select(SubsetRow).where(SubsetRow.task_seq == self.context.dice.choice(tasks)).order_by(SubsetRow.seq)
        ).all()
        return self.context.dice.choice(subsets)

    def _find_repeat(self, session: Session, rater: RaterRow) -> SubsetRow | None:
        """Of what this rater ordered some answers ago, and was not shown again yet."""
        own = and_(AnswerRow.rater_seq == rater.seq, is_counted(), AnswerRow.verdict == "tiers")
        lately = session.scalars(
            select(AnswerRow.seq).where(own).order_by(AnswerRow.seq.desc()).offset(REPEAT_AFTER).limit(1)
        ).first()
        if lately is None:
            return None
        again = exists().where(
            LeaseRow.subset_seq == AnswerRow.subset_seq,
            LeaseRow.rater_seq == rater.seq,
            or_(LeaseRow.purpose == "repeat", LeaseRow.purpose == "gold"),
        )
        rows = session.scalars(
            select(AnswerRow.subset_seq)
            .where(own, AnswerRow.seq <= lately, ~again)
            .order_by(AnswerRow.seq.desc())
            .limit(GOLD_WINDOW)
        ).all()
        return session.get(SubsetRow, self.context.dice.choice(rows)) if rows else None

    def _grant_lease(self, session: Session, rater: RaterRow, subset: SubsetRow, purpose: str, time: float) -> LeaseRow:
        lease = LeaseRow(
            id=f"lease_{secrets.token_hex(16)}", subset_seq=subset.seq, rater_seq=rater.seq, purpose=purpose,
            granted_at=time, expires_at=time + self.context.settings.ratings_lease_s,
        )  # fmt: skip
        session.add(lease)
        session.flush()
        digests = dict(
            session.execute(
                select(TaskImageRow.position, TaskImageRow.sha256).where(TaskImageRow.task_seq == subset.task_seq)
            ).all()
        )
        order = shuffle_positions(subset, rater.pseudonym, purpose)
        session.add_all(
            ShownImageRow(
                id=secrets.token_urlsafe(16), lease_seq=lease.seq, place=place, position=position,
                sha256=digests[position],
            )
            for place, position in enumerate(order)
        )  # fmt: skip
        session.flush()
        return lease


def shuffle_positions(subset: SubsetRow, rater: str, purpose: str) -> list[int]:
    """The order in which a rater sees a subset: the same every time, another for others, and another for a repeat."""
    order = list(subset.positions)
    random.Random(f"{subset.seq}:{rater}:{purpose == 'repeat'}").shuffle(order)  # noqa: S311  # no secret
    return order


def lock_rater(session: Session, rater_seq: int) -> RaterRow:
    return session.scalars(select(RaterRow).where(RaterRow.seq == rater_seq).with_for_update()).one()


def lock_working_rater(session: Session, rater_seq: int) -> RaterRow:
    """For whoever is to get a task. Raises Forbidden for a rater who is paused."""
    rater = lock_rater(session, rater_seq)
    if rater.paused:
        raise Forbidden("you are paused: the operator of this service can let you go on")
    return rater


def find_lease(session: Session, rater_seq: int, lease_id: str) -> LeaseRow:
    lease = session.scalar(select(LeaseRow).where(LeaseRow.id == lease_id, LeaseRow.rater_seq == rater_seq))
    if lease is None:
        raise NotFound("there is no such lease")
    return lease


def end_leases(session: Session, rater_seq: int, time: float, lease_id: str | None = None) -> None:
    """End what a rater holds, or one of it."""
    query = select(LeaseRow).where(LeaseRow.rater_seq == rater_seq, LeaseRow.ended_at.is_(None))
    for lease in session.scalars(query if lease_id is None else query.where(LeaseRow.id == lease_id)):
        lease.ended_at = time


def lease_gone() -> Gone:
    return Gone("your hold on this task has ended: take another; an answer may still be sent, and may still count")


def _is_wanted(session: Session, lease: LeaseRow) -> bool:
    query = select(TaskRow.state).join(SubsetRow, SubsetRow.task_seq == TaskRow.seq)
    return session.scalar(query.where(SubsetRow.seq == lease.subset_seq)) == "pending"


def _find_open(rater_seq: int, time: float) -> Select[SubsetRow, TaskRow]:
    """Subsets with a free place that this rater has not answered or skipped, those wanted first first.

    Of tasks that ask the same, of two jobs say, only the one wanted first is shown: its scores will serve the others.
    """
    leases = select(func.count()).where(LeaseRow.subset_seq == SubsetRow.seq, is_live(time)).correlate(SubsetRow)
    answers = select(func.count()).where(AnswerRow.subset_seq == SubsetRow.seq, is_counted()).correlate(SubsetRow)
    said = exists().where(
        AnswerRow.subset_seq == SubsetRow.seq, AnswerRow.rater_seq == rater_seq, AnswerRow.undone_at.is_(None)
    )
    other = aliased(TaskRow)
    is_first = or_(other.priority > TaskRow.priority, and_(other.priority == TaskRow.priority, other.seq < TaskRow.seq))
    asked_already = exists().where(
        other.content == TaskRow.content, other.state == "pending", other.deadline > time, is_first
    )
    return (
        select(SubsetRow, TaskRow)
        .join(TaskRow, TaskRow.seq == SubsetRow.task_seq)
        .where(
            TaskRow.state == "pending",
            TaskRow.deadline > time,
            leases.scalar_subquery() + answers.scalar_subquery() < TaskRow.target,
            ~said,
            ~asked_already,
        )
        .order_by(TaskRow.priority.desc(), TaskRow.seq, SubsetRow.seq)
    )
