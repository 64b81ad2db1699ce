"""What a request may say of its task: `metadata.rating`, an object. Whatever else is in metadata is not looked at.

{"metadata": {"rating": {"instructions": "the redder the better", "min_ratings": 2, "deadline_s": 3600}}}
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from dipole.errors import InvalidInput
from dipole.protocol.schemas import StrictModel
from dipole.protocol.validation import check_storable, first_error
from dipole_ratings.settings import OnTimeout, RatingsSettings

FIELD = "metadata.rating"


class TaskOptions(StrictModel):
    """Fields that are absent take the service's settings."""

    instructions: str | None = Field(default=None, max_length=2000)
    min_ratings: int | None = Field(default=None, ge=1, le=100)
    max_ratings: int | None = Field(default=None, ge=1, le=100)
    deadline_s: float | None = Field(default=None, gt=0, le=31_536_000)
    on_timeout: OnTimeout | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    job: str | None = Field(default=None, min_length=1, max_length=128)

    def ratings_wanted(self, settings: RatingsSettings) -> tuple[int, int]:
        """(least, most) ratings of each subset. Raises InvalidInput for a most that is less than the least."""
        least = self.min_ratings or settings.ratings_min
        most = self.max_ratings or max(least, settings.ratings_max)
        if most < least:
            raise InvalidInput(
                f"{FIELD}.max_ratings = {most} is less than min_ratings = {least}: raise it",
                field=f"{FIELD}.max_ratings",
            )
        return least, most


def parse_task_options(metadata: dict[str, Any] | None) -> TaskOptions:
    """Raises InvalidInput that names the field."""
    given = (metadata or {}).get("rating")
    if given is None:
        return TaskOptions()
    check_storable(given, FIELD)
    try:
        return TaskOptions.model_validate(given)
    except ValidationError as error:
        first = first_error(error, FIELD)
        raise InvalidInput(first.sentence, field=first.path) from None
