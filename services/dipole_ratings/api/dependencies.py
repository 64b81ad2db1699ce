"""What routes are given: the parts of the queue, made once by app.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from dipole.database.engine import Database
from dipole_ratings.queue.answers import RatingAnswers
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.deliveries import CallbackOutbox
from dipole_ratings.queue.leases import RatingLeases
from dipole_ratings.queue.raters import Raters
from dipole_ratings.queue.tasks import RatingTasks
from dipole_ratings.reports.rater_quality import RaterJudge
from dipole_ratings.reports.statistics import RatingStatistics
from dipole_ratings.settings import RatingsSettings

Responses = dict[int | str, dict[str, Any]]  # of a route, as FastAPI documents them


@dataclass(frozen=True)
class RatingParts:
    settings: RatingsSettings
    database: Database
    context: QueueContext
    tasks: RatingTasks
    leases: RatingLeases
    answers: RatingAnswers
    raters: Raters
    judge: RaterJudge
    outbox: CallbackOutbox
    statistics: RatingStatistics

    @classmethod
    def over(cls, context: QueueContext) -> RatingParts:
        leases = RatingLeases(context)
        return cls(
            settings=context.settings,
            database=context.database,
            context=context,
            tasks=RatingTasks(context),
            leases=leases,
            answers=RatingAnswers(context, leases),
            raters=Raters(context),
            judge=RaterJudge(context),
            outbox=CallbackOutbox(context),
            statistics=RatingStatistics(context),
        )


def rating_parts(request: Request) -> RatingParts:
    return cast(RatingParts, request.app.state.parts)


Parts = Annotated[RatingParts, Depends(rating_parts)]
