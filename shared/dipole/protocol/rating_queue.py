"""What a rating service says of its queue, as its own page, the command line and the trainer's dashboard show it."""

from __future__ import annotations

from pydantic import Field

from dipole.protocol.schemas import ProtocolMessage

STATUS_PATH = "/v1/ratings/status"
OPERATOR_PAGE = "/operator"  # raters one by one, invitations, and deliveries with a button to send each again


class JobReport(ProtocolMessage):
    job: str
    pending: int
    completed: int
    oldest_s: float | None
    priority: int


class QueueReport(ProtocolMessage):
    """The queue in figures: `pending` and `oldest_s` are of tasks, `leased` and `answered` of what raters see."""

    pending: int
    leased: int
    answered: int
    oldest_s: float | None
    ratings_per_hour: int
    agreement: float | None = Field(description="Krippendorff's alpha (ordinal) over the latest answers.")
    deliveries: dict[str, int]
    by_job: list[JobReport]
