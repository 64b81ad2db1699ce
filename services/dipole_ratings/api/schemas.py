"""What the rater's page and the operator send and get."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dipole.protocol.schemas import ProtocolMessage
from dipole_ratings.queue.answers import GivenAnswer
from dipole_ratings.queue.leases import TakenLease

Label = Annotated[str, Field(min_length=1, max_length=1, pattern="^[A-F]$")]
IMAGES = "/v1/rater/images/"
DwellMs = Annotated[int, Field(ge=0, le=2**40)]


def to_iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_iso_or_none(moment: float | None) -> str | None:
    return None if moment is None else to_iso(moment)


# ---- rater


class SessionRequest(ProtocolMessage):
    invitation: str = Field(min_length=1, max_length=256)


class RaterState(ProtocolMessage):
    rater: str
    answered: int
    answered_today: int
    waiting: int
    paused: bool


class LeaseImage(ProtocolMessage):
    id: str
    label: str
    url: str
    width: int
    height: int


class LeaseMessage(ProtocolMessage):
    id: str
    expires_at: str
    expires_in_s: float
    heartbeat_s: float
    prompt: str
    instructions: str | None
    max_tiers: int
    images: list[LeaseImage]

    @classmethod
    def of(cls, lease: TakenLease, heartbeat_s: float) -> LeaseMessage:
        return cls(
            id=lease.id,
            expires_at=to_iso(lease.expires_at),
            expires_in_s=lease.expires_in_s,
            heartbeat_s=heartbeat_s,
            prompt=lease.prompt,
            instructions=lease.instructions,
            max_tiers=len(lease.images),
            images=[
                LeaseImage(
                    id=each.id,
                    label=each.label,
                    url=f"{IMAGES}{each.id}",
                    width=each.width,
                    height=each.height,
                )
                for each in lease.images
            ],
        )


class LeaseExtension(ProtocolMessage):
    expires_at: str
    expires_in_s: float


class AnswerRequest(ProtocolMessage):
    """One of tiers (best first, with what is left unranked), skip with a reason, none_usable."""

    tiers: list[list[Label]] | None = Field(default=None, max_length=6)
    unranked: list[Label] = Field(default=[], max_length=6)
    skip: str | None = Field(default=None, min_length=1, max_length=500)
    none_usable: Literal[True] | None = None
    dwell_ms: DwellMs | None = None

    @model_validator(mode="after")
    def _check_one(self) -> AnswerRequest:
        given = [self.tiers is not None, self.skip is not None, self.none_usable is not None]
        if sum(given) != 1:
            raise ValueError("tiers: give one of tiers, skip and none_usable")
        if self.tiers is None and self.unranked:
            raise ValueError("unranked: goes with tiers alone")
        return self

    def to_answer(self) -> GivenAnswer:
        return GivenAnswer(
            tiers=self.tiers or (),
            unranked=self.unranked,
            skip=self.skip,
            none_usable=bool(self.none_usable),
            dwell_ms=self.dwell_ms,
        )


class AnswerReceipt(ProtocolMessage):
    id: str
    counted: bool
    undo: bool


# ---- operator


class InvitationRequest(ProtocolMessage):
    name: str | None = Field(default=None, min_length=1, max_length=255)
    expires_in_s: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)


class Invitation(ProtocolMessage):
    id: str
    rater: str
    name: str | None
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    last_seen: str | None


class NewInvitation(Invitation):
    link: str = Field(description="Relative to this service's address. It is shown this once.")


class RaterReport(ProtocolMessage):
    """Shares are 0…1; null where nothing was seen yet."""

    rater: str
    name: str | None
    answers: int
    repeats_agreed: float | None
    gold_right: float | None
    agreement: float | None = Field(description="Mean Kendall tau-b with the others' order.")
    hasty: float | None = Field(description="Share of answers given too fast to have looked.")
    weight: float
    paused: bool
    last_seen: str | None


class RaterUpdate(ProtocolMessage):
    paused: bool


class JobUpdate(ProtocolMessage):
    priority: int = Field(ge=-1000, le=1000)


class DeliveryReport(ProtocolMessage):
    id: str
    ranking: str
    url: str
    state: Literal["waiting", "delivered", "given_up"]
    attempts: int
    next_at: str | None
    last_error: str | None
    created_at: str
    delivered_at: str | None
