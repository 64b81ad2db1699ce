"""Raters: invited by a link, known by a pseudonym, paused, revoked, forgotten.

A link's token and a session's are kept as hashes. A rater may come by one link from several browsers until it is
revoked or expires, and that ends their sessions too. Forgetting a rater keeps the answers, which jobs were trained on,
under a new pseudonym that leads to nobody, and drops all else: name, links, sessions, free texts, times of looking.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from dipole.database.queries import require
from dipole.errors import Unauthorized
from dipole.web.auth import hash_key
from dipole_ratings.database.tables import AnswerRow, InvitationRow, RaterRow, SessionRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.leases import end_leases

DAY_S = 86400.0
SEEN_EVERY_S = 60.0  # of the time of a rater's last request, so that each does not write


@dataclass(frozen=True)
class CurrentRater:
    seq: int
    pseudonym: str
    paused: bool


@dataclass(frozen=True)
class InvitationState:
    """`state` is active, expired or revoked."""

    id: str
    rater: str
    name: str | None
    created_at: float
    expires_at: float | None
    state: str
    last_seen: float | None


class Raters:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    # ---- links

    def invite_rater(self, name: str | None, expires_in_s: float | None) -> tuple[InvitationState, str]:
        """A new rater's link, and its token, which is shown this once."""
        token = secrets.token_urlsafe(32)
        with self.context.database.writing() as session:
            time = self.context.clock(session)
            rater = RaterRow(pseudonym=f"rater-{secrets.token_hex(4)}", name=name, created_at=time)
            session.add(rater)
            session.flush()
            invitation = InvitationRow(
                id=f"invitation_{secrets.token_hex(8)}", rater_seq=rater.seq, sha256=hash_key(token), created_at=time,
                expires_at=None if expires_in_s is None else time + expires_in_s,
            )  # fmt: skip
            session.add(invitation)
            session.flush()
            return _state_of(invitation, rater, time), token

    def list_invitations(self) -> list[InvitationState]:
        """The newest first."""
        with self.context.database.reading() as session:
            time = self.context.clock(session)
            query = (
                select(InvitationRow, RaterRow)
                .join(RaterRow, RaterRow.seq == InvitationRow.rater_seq)
                .order_by(InvitationRow.created_at.desc(), InvitationRow.id)
            )
            return [_state_of(invitation, rater, time) for invitation, rater in session.execute(query)]

    def revoke_invitation(self, invitation_id: str) -> None:
        """End a link and the sessions that came by it; the rater's leases are given back. Raises NotFound."""
        with self.context.database.writing() as session:
            invitation = require(session.get(InvitationRow, invitation_id), invitation_id, "invitation")
            time = self.context.clock(session)
            invitation.revoked_at = invitation.revoked_at or time
            session.execute(delete(SessionRow).where(SessionRow.invitation_id == invitation.id))
            if not _has_sessions(session, invitation.rater_seq):
                end_leases(session, invitation.rater_seq, time)

    # ---- sessions

    def start_session(self, invitation_token: str) -> tuple[CurrentRater, str]:
        """(rater, the session's token). Raises Unauthorized for a token that is unknown, revoked or expired."""
        token = secrets.token_urlsafe(32)
        with self.context.database.writing() as session:
            time = self.context.clock(session)
            query = (
                select(InvitationRow, RaterRow)
                .join(RaterRow, RaterRow.seq == InvitationRow.rater_seq)
                .where(
                    InvitationRow.sha256 == hash_key(invitation_token),
                    InvitationRow.revoked_at.is_(None),
                    or_(InvitationRow.expires_at.is_(None), InvitationRow.expires_at > time),
                )
            )
            found = session.execute(query).first()
            if found is None:
                raise Unauthorized("this invitation is unknown, revoked or expired: ask for a new link")
            invitation, rater = found
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= time))
            lasts = time + self.context.settings.ratings_session_days * DAY_S
            session.add(
                SessionRow(
                    sha256=hash_key(token), rater_seq=rater.seq, invitation_id=invitation.id,
                    expires_at=min(lasts, invitation.expires_at or lasts),
                )
            )  # fmt: skip
            rater.last_seen = time
            return CurrentRater(rater.seq, rater.pseudonym, rater.paused), token

    def find_session(self, token: str | None) -> CurrentRater:
        """Raises Unauthorized where there is none."""
        with self.context.database.reading() as session:
            time = self.context.clock(session)
            query = select(RaterRow).join(SessionRow, SessionRow.rater_seq == RaterRow.seq)
            known = and_(SessionRow.sha256 == hash_key(token or ""), SessionRow.expires_at > time)
            rater = session.scalar(query.where(known))
        if rater is None:
            raise Unauthorized("there is no session: open the invitation's link again")
        if (rater.last_seen or 0.0) < time - SEEN_EVERY_S:
            with self.context.database.writing() as session:
                session.execute(update(RaterRow).where(RaterRow.seq == rater.seq).values(last_seen=time))
        return CurrentRater(rater.seq, rater.pseudonym, rater.paused)

    def end_session(self, token: str | None) -> None:
        """Leave: the browser is known no more, and its rater's leases are given back if no other browser has them."""
        with self.context.database.writing() as session:
            found = session.get(SessionRow, hash_key(token or ""))
            if found is not None:
                rater_seq = found.rater_seq
                session.delete(found)
                session.flush()
                if not _has_sessions(session, rater_seq):
                    end_leases(session, rater_seq, self.context.clock(session))

    def count_answers(self, rater_seq: int) -> tuple[int, int]:
        """(answers of the rater, those of today in UTC): whatever they were for, but skips."""
        own = and_(AnswerRow.rater_seq == rater_seq, AnswerRow.undone_at.is_(None), AnswerRow.verdict != "skip")
        with self.context.database.reading() as session:
            time = self.context.clock(session)
            today = select(func.count()).where(own, AnswerRow.created_at >= time - time % DAY_S)
            return session.scalar(select(func.count()).where(own)) or 0, session.scalar(today) or 0

    # ---- an operator's

    def pause_rater(self, pseudonym: str, paused: bool) -> None:
        """Paused, a rater gets no more tasks; what is held is given back. Raises NotFound."""
        with self.context.database.writing() as session:
            rater = _find_rater(session, pseudonym)
            rater.paused = paused
            if paused:
                end_leases(session, rater.seq, self.context.clock(session))

    def forget_rater(self, pseudonym: str) -> None:
        """Raises NotFound."""
        with self.context.database.writing() as session:
            rater = _find_rater(session, pseudonym)
            time = self.context.clock(session)
            end_leases(session, rater.seq, time)
            session.execute(delete(SessionRow).where(SessionRow.rater_seq == rater.seq))
            session.execute(delete(InvitationRow).where(InvitationRow.rater_seq == rater.seq))
            blank = {"dwell_ms": None, "skip_reason": None}
            session.execute(update(AnswerRow).where(AnswerRow.rater_seq == rater.seq).values(blank))
            rater.pseudonym, rater.name = f"forgotten-{secrets.token_hex(4)}", None
            rater.deleted_at, rater.last_seen, rater.paused = time, None, True


def _find_rater(session: Session, pseudonym: str) -> RaterRow:
    query = select(RaterRow).where(RaterRow.pseudonym == pseudonym, RaterRow.deleted_at.is_(None)).with_for_update()
    return require(session.scalar(query), pseudonym, "rater")


def _has_sessions(session: Session, rater_seq: int) -> bool:
    found: Sequence[str] = session.scalars(
        select(SessionRow.sha256).where(SessionRow.rater_seq == rater_seq).limit(1)
    ).all()
    return bool(found)


def _state_of(invitation: InvitationRow, rater: RaterRow, time: float) -> InvitationState:
    expired = invitation.expires_at is not None and invitation.expires_at <= time
    return InvitationState(
        id=invitation.id,
        rater=rater.pseudonym,
        name=rater.name,
        created_at=invitation.created_at,
        expires_at=invitation.expires_at,
        state="revoked" if invitation.revoked_at is not None else "expired" if expired else "active",
        last_seen=rater.last_seen,
    )
