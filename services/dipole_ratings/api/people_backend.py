"""People as the backend of the protocol's routes: requests become tasks in SQL, which replicas share."""

from __future__ import annotations

import asyncio

import structlog

from dipole.errors import ConfigurationError
from dipole.protocol.images import MEDIA_TYPES
from dipole.protocol.schemas import PendingRanking, RewardInfo
from dipole_ratings.queue.images import prepare_image
from dipole_ratings.queue.task_options import parse_task_options
from dipole_ratings.queue.task_results import RECIPE_VERSION
from dipole_ratings.queue.tasks import RatingTasks, TaskRequest
from dipole_ratings.settings import RatingsSettings
from dipole_rewards.server.callbacks import check_callback_url
from dipole_rewards.server.idempotency import check_key
from dipole_rewards.server.ranking_backend import RankingState, RankOptions
from dipole_rewards.server.request_parsing import ParsedRequest, RequestBounds

NO_JOB = "none"  # of requests that name none


class PeopleBackend:
    """Implements RankingBackend. Raises ConfigurationError for callbacks without a secret to sign them."""

    poll_interval_s = 2

    def __init__(self, tasks: RatingTasks, settings: RatingsSettings) -> None:
        if settings.ratings_callback_hosts and settings.ratings_callback_secret is None:
            raise ConfigurationError(
                "DIPOLE_RATINGS_CALLBACK_HOSTS needs DIPOLE_RATINGS_CALLBACK_SECRET to sign callbacks"
            )
        self.tasks, self.settings = tasks, settings
        self.bounds = RequestBounds(
            max_candidates=settings.ratings_max_candidates,
            max_pixels=settings.ratings_max_pixels,
            max_total_pixels=settings.ratings_max_total_pixels,
        )

    def check_ready(self) -> None:
        """The database says so when it is asked."""

    def describe(self) -> RewardInfo:
        return RewardInfo(
            name=self.settings.ratings_name,
            model=self.settings.ratings_name,
            model_revision=self.settings.ratings_revision,
            recipe_version=RECIPE_VERSION,
            media_types=list(MEDIA_TYPES),
            max_candidates=self.settings.ratings_max_candidates,
            max_pixels=self.settings.ratings_max_pixels,
            calibrated=False,
            deterministic=False,
        )

    def check_request(self, incoming: ParsedRequest) -> None:
        check_callback_url(incoming.request.callback_url, self.settings.ratings_callback_hosts)
        parse_task_options(incoming.request.metadata).ratings_wanted(self.settings)

    async def rank_group(self, incoming: ParsedRequest, options: RankOptions) -> RankingState:
        return await asyncio.to_thread(self._submit, incoming, options)

    async def get_ranking(self, ranking_id: str) -> RankingState:
        return await asyncio.to_thread(self.tasks.get_ranking, ranking_id)

    async def cancel_ranking(self, ranking_id: str) -> PendingRanking:
        return await asyncio.to_thread(self.tasks.cancel_task, ranking_id)

    def _submit(self, incoming: ParsedRequest, options: RankOptions) -> RankingState:
        request, wanted = incoming.request, parse_task_options(incoming.request.metadata)
        key = options.idempotency_key
        job = structlog.contextvars.get_contextvars().get("job_id")
        return self.tasks.submit_task(
            TaskRequest(
                prompt=request.prompt,
                candidate_ids=[candidate.id for candidate in request.candidates],
                images=[prepare_image(pixels) for pixels in incoming.pixels],
                options=wanted,
                job=wanted.job or (str(job) if job else NO_JOB),
                digest=incoming.digest,
                idempotency_key=None if key is None else check_key(key),
                callback_url=request.callback_url,
                promise=options.respond_async,
            )
        )
