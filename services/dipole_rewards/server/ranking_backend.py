"""The seam of the ranking protocol's server: whoever ranks, behind the routes of ranking_routes.

a reward            answers at once, or keeps 202 rankings in memory       dipole_rewards.scoring.reward_backend
people              tasks in SQL, which replicas share                     dipole_ratings.api.people_backend
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dipole.protocol.schemas import PendingRanking, Ranking, RewardInfo
from dipole_rewards.server.request_parsing import ParsedRequest, RequestBounds

RankingState = Ranking | PendingRanking


@dataclass(frozen=True)
class RankOptions:
    """What a caller asks for beside the request's body: the key of repeats, and whether it would rather poll."""

    idempotency_key: str | None = None
    respond_async: bool = False


class RankingBackend(Protocol):
    """Ranks groups. Errors are DipoleErrors; a state that is pending is answered with 202."""

    @property
    def bounds(self) -> RequestBounds:
        """What a request may hold, checked before it is decoded."""
        ...

    @property
    def poll_interval_s(self) -> int:
        """The Retry-After of a 202."""
        ...

    def check_ready(self) -> None:
        """Raise Overloaded while nothing can be ranked."""
        ...

    def describe(self) -> RewardInfo:
        """What /v1/info answers."""
        ...

    def check_request(self, incoming: ParsedRequest) -> None:
        """Raise InvalidInput for what a decoded request asks and this backend does not do, such as a callback."""
        ...

    async def rank_group(self, incoming: ParsedRequest, options: RankOptions) -> RankingState:
        """The ranking, or that it is pending; the same again for a repeat under one key.

        Raises InvalidInput for a key that came with another body, Overloaded when there is no room.
        """
        ...

    async def get_ranking(self, ranking_id: str) -> RankingState:
        """Raises NotFound."""
        ...

    async def cancel_ranking(self, ranking_id: str) -> PendingRanking:
        """The cancelled state; twice is fine. Raises NotFound, or Conflict when it has finished."""
        ...
