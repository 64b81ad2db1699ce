"""A reward as the backend of the protocol's routes: its 202 rankings and its answers to repeats are in memory."""

from __future__ import annotations

from functools import partial

import httpx

from dipole.errors import ConfigurationError
from dipole.protocol.schemas import PendingRanking, RewardInfo
from dipole_rewards.scoring.service import RewardService
from dipole_rewards.server.callbacks import check_callback_url, deliver_callback
from dipole_rewards.server.idempotency import IdempotencyStore
from dipole_rewards.server.pending_rankings import PendingRankings
from dipole_rewards.server.ranking_backend import RankingState, RankOptions
from dipole_rewards.server.request_parsing import ParsedRequest, RequestBounds


class RewardBackend:
    """Implements RankingBackend. Raises ConfigurationError for callbacks without a secret to sign them."""

    poll_interval_s = 1

    def __init__(self, service: RewardService, *, callback_transport: httpx.AsyncBaseTransport | None = None) -> None:
        settings = service.settings
        secret = settings.reward_callback_secret
        if settings.reward_callback_hosts and secret is None:
            raise ConfigurationError(
                "DIPOLE_REWARD_CALLBACK_HOSTS needs DIPOLE_REWARD_CALLBACK_SECRET to sign callbacks"
            )
        self.service, self._callback_transport = service, callback_transport
        self._secret = secret.get_secret_value() if secret else ""
        self._pending = PendingRankings(settings.reward_max_pending, self._deliver_result)
        self._idempotency = IdempotencyStore(settings.reward_idempotency_entries, self._pending.is_lost)

    @property
    def bounds(self) -> RequestBounds:
        settings = self.service.settings
        return RequestBounds(
            max_candidates=settings.reward_max_candidates,
            max_pixels=settings.reward_max_pixels,
            max_total_pixels=settings.reward_max_total_pixels,
            latents=self.service.latent_space,
            find_memory=self.service.find_memory,
        )

    async def close(self) -> None:
        await self._pending.close()

    def check_ready(self) -> None:
        self.service.ready_reward()

    def describe(self) -> RewardInfo:
        return self.service.describe()

    def check_request(self, incoming: ParsedRequest) -> None:
        check_callback_url(incoming.request.callback_url, self.service.settings.reward_callback_hosts)

    async def rank_group(self, incoming: ParsedRequest, options: RankOptions) -> RankingState:
        service, callback_url = self.service, incoming.request.callback_url

        async def make_answer() -> RankingState:
            submit = partial(service.submit_group, incoming)
            if options.respond_async or callback_url or service.reward_class.slow:
                return self._pending.start(submit, partial(service.await_ranking, incoming), callback_url)
            return await service.await_ranking(incoming, submit(), wait_s=service.settings.reward_answer_timeout_s)

        digest = f"{options.respond_async}:{incoming.digest}"
        return await self._idempotency.run_once(options.idempotency_key, digest, make_answer)

    async def get_ranking(self, ranking_id: str) -> RankingState:
        return self._pending.get(ranking_id)

    async def cancel_ranking(self, ranking_id: str) -> PendingRanking:
        return self._pending.cancel(ranking_id)

    async def _deliver_result(self, url: str, state: RankingState) -> None:
        await deliver_callback(url, state, secret=self._secret, transport=self._callback_transport)
