"""A task as its caller sees it: a Ranking, or a state on the way there."""

from __future__ import annotations

from dipole.protocol.schemas import ItemError, PendingRanking, RankedItem, Ranking, rank_scores
from dipole_ratings.database.tables import TaskRow
from dipole_ratings.settings import RatingsSettings
from dipole_rewards.server.ranking_backend import RankingState

RECIPE_VERSION = "1"  # of aggregation, and of what raters are shown
__all__ = ["RECIPE_VERSION", "RankingState", "cancelled_ranking", "ranking_of_task"]


def ranking_of_task(task: TaskRow, settings: RatingsSettings) -> RankingState:
    """The same document every time, once it is completed."""
    match task.state:
        case "pending":
            return PendingRanking(id=task.id)
        case "cancelled":
            return cancelled_ranking(task)
        case "failed":
            return PendingRanking(id=task.id, status="failed", error=_item_error(task))
        case _:
            return _completed_ranking(task, settings)


def cancelled_ranking(task: TaskRow) -> PendingRanking:
    return PendingRanking(id=task.id, status="cancelled")


def _completed_ranking(task: TaskRow, settings: RatingsSettings) -> Ranking:
    assert task.finished_at is not None
    known = task.scores or [None] * task.images
    scores = [known[position] for _, position in task.candidates]
    return Ranking(
        id=task.id,
        created=int(task.finished_at),
        model=settings.ratings_name,
        model_revision=settings.ratings_revision,
        recipe_version=RECIPE_VERSION,
        results=[
            RankedItem(id=name, score=score, rank=rank, error=_item_error(task) if score is None else None)
            for (name, _), score, rank in zip(task.candidates, scores, rank_scores(scores), strict=True)
        ],
        usage={"images": task.images, "ratings": task.ratings, "reused": task.reused, "agreement": task.agreement},
    )


def _item_error(task: TaskRow) -> ItemError:
    return ItemError(code=task.code or "no_order", message=task.reason or "People gave no order.")
