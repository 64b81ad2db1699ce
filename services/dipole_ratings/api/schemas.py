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
    """How a rater comes."""

    invitation: str = Field(
        min_length=1, max_length=256, description="Token that the invitation's link carries behind `#invitation=`."
    )


class RaterState(ProtocolMessage):
    """Who a rater is, and how much there is to do."""

    rater: str = Field(description="The rater's pseudonym.")
    answered: int = Field(description="Number of answers that the rater has given.")
    answered_today: int = Field(description="Number of answers that the rater has given today.")
    waiting: int = Field(description="Number of tasks that the rater could take now.")
    paused: bool = Field(description="Whether the operator has paused the rater.")


class LeaseImage(ProtocolMessage):
    """An image of a task, as the rater sees it."""

    id: str = Field(description="Id of the image.")
    label: str = Field(description="Letter that stands for the image in the answer.")
    url: str = Field(description="Path of the image on this service.")
    width: int = Field(description="Width in pixels.")
    height: int = Field(description="Height in pixels.")


class LeaseMessage(ProtocolMessage):
    """A task that a rater holds for a while."""

    id: str = Field(description="Id of the lease.")
    expires_at: str = Field(description="When the hold ends unless it is extended, in ISO 8601.")
    expires_in_s: float = Field(description="Seconds until the hold ends.")
    heartbeat_s: float = Field(description="Seconds after which the page should extend the hold again.")
    prompt: str = Field(description="Text that the images were drawn for.")
    instructions: str | None = Field(
        description="What the operator asks raters to look for; null for nothing in particular."
    )
    max_tiers: int = Field(description="Most tiers that an answer may have.")
    images: list[LeaseImage] = Field(description="The images, in the order in which they are shown.")

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
    """For how long a task is held now."""

    expires_at: str = Field(description="When the hold ends now, in ISO 8601.")
    expires_in_s: float = Field(description="Seconds until the hold ends.")


class AnswerRequest(ProtocolMessage):
    """One of tiers (best first, with what is left unranked), skip with a reason, none_usable."""

    tiers: list[list[Label]] | None = Field(
        default=None, max_length=6, description="Labels of the images by tier, best tier first."
    )
    unranked: list[Label] = Field(
        default=[], max_length=6, description="Labels of the images that the rater left out of the order."
    )
    skip: str | None = Field(
        default=None, min_length=1, max_length=500, description="Why the rater does not answer this task."
    )
    none_usable: Literal[True] | None = Field(default=None, description="Given as true where no image is usable.")
    dwell_ms: DwellMs | None = Field(default=None, description="Time that the rater looked, in milliseconds.")

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
    """What became of an answer."""

    id: str = Field(description="Id of the answer, by which it can be undone.")
    counted: bool = Field(description="Whether the answer counts; false where others had answered enough already.")
    undo: bool = Field(description="Whether the answer can still be undone.")


# ---- operator


class InvitationRequest(ProtocolMessage):
    """A link to make for a new rater."""

    name: str | None = Field(
        default=None, min_length=1, max_length=255, description="Name of the rater, which the operator alone sees."
    )
    expires_in_s: float | None = Field(
        default=None,
        gt=0,
        le=10 * 365 * 86400,
        description="Seconds that the link is valid for; absent: until it is revoked.",
    )


class Invitation(ProtocolMessage):
    """A rater's link, without the secret in it."""

    id: str = Field(description="Id of the invitation.")
    rater: str = Field(description="Pseudonym of the rater.")
    name: str | None = Field(description="Name of the rater; null where none was given.")
    state: Literal["active", "expired", "revoked"] = Field(description="Whether the link still opens the page.")
    created_at: str = Field(description="When it was made, in ISO 8601.")
    expires_at: str | None = Field(description="When it expires, in ISO 8601; null for never.")
    last_seen: str | None = Field(description="When the rater was last there, in ISO 8601; null for never.")


class NewInvitation(Invitation):
    """A link that was just made."""

    link: str = Field(description="Relative to this service's address. It is shown this once.")


class RaterReport(ProtocolMessage):
    """Shares are 0…1; null where nothing was seen yet."""

    rater: str = Field(description="Pseudonym of the rater.")
    name: str | None = Field(description="Name of the rater; null where none was given.")
    answers: int = Field(description="Number of answers that the rater has given.")
    repeats_agreed: float | None = Field(description="Share of repeated tasks that were answered alike.")
    gold_right: float | None = Field(description="Share of tasks with a known answer that were answered right.")
    agreement: float | None = Field(description="Mean Kendall tau-b with the others' order.")
    hasty: float | None = Field(description="Share of answers given too fast to have looked.")
    weight: float = Field(description="Weight by which the rater's answers count.")
    paused: bool = Field(description="Whether the operator has paused the rater.")
    last_seen: str | None = Field(description="When the rater was last there, in ISO 8601; null for never.")


class RaterUpdate(ProtocolMessage):
    """What the operator changes of a rater."""

    paused: bool = Field(description="Whether the rater is to be paused.")


class JobUpdate(ProtocolMessage):
    """What the operator changes of a job's tasks."""

    priority: int = Field(ge=-1000, le=1000, description="Tasks of a higher priority are shown sooner.")


class DeliveryReport(ProtocolMessage):
    """A callback that is owed, delivered or given up."""

    id: str = Field(description="Id of the delivery.")
    ranking: str = Field(description="Id of the ranking that is delivered.")
    url: str = Field(description="URL that the ranking is sent to.")
    state: Literal["waiting", "delivered", "given_up"] = Field(description="State of the delivery.")
    attempts: int = Field(description="Number of times that it was tried.")
    next_at: str | None = Field(description="When it is tried next, in ISO 8601; null where it is not.")
    last_error: str | None = Field(description="Why the last try failed; null where none did.")
    created_at: str = Field(description="When it was first due, in ISO 8601.")
    delivered_at: str | None = Field(description="When it arrived, in ISO 8601; null where it has not.")
