"""What a rating service says of its queue, as its own page, the command line and the trainer's dashboard show it."""

from __future__ import annotations

from pydantic import Field

from dipole.protocol.schemas import ProtocolMessage

STATUS_PATH = "/v1/ratings/status"
OPERATOR_PAGE = "/operator"  # raters one by one, invitations, and deliveries with a button to send each again


class JobReport(ProtocolMessage):
    """The queue of one job."""

    job: str = Field(description="Id of the job that asked.")
    pending: int = Field(description="Number of its tasks that wait for answers.")
    completed: int = Field(description="Number of its tasks that are done.")
    oldest_s: float | None = Field(description="Seconds that its oldest task has waited; null where none waits.")
    priority: int = Field(description="Tasks of a higher priority are shown sooner.")


class QueueReport(ProtocolMessage):
    """The queue in figures."""

    pending: int = Field(description="Number of tasks that wait for answers.")
    leased: int = Field(description="Number of tasks that raters hold now.")
    answered: int = Field(description="Number of answers that are kept.")
    oldest_s: float | None = Field(description="Seconds that the oldest task has waited; null where none waits.")
    ratings_per_hour: int = Field(description="Number of answers in the last hour.")
    agreement: float | None = Field(description="Krippendorff's alpha (ordinal) over the latest answers.")
    deliveries: dict[str, int] = Field(description="Number of callbacks by their state.")
    by_job: list[JobReport] = Field(description="The same by the job that asked.")
