"""A ranker in front of another one, for whoever watches what passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, Ranker, RankingBacklog
from dipole_trainer.spec import RewardSpec


class ForwardingRanker:
    """A groups.Ranker that passes all on to `ranker`; what is watched is overridden."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker

    def takes_latents(self) -> bool:
        return self.ranker.takes_latents()

    def submit(self, group: CandidateGroup) -> None:
        self.ranker.submit(group)

    def collect(self, timeout_s: float) -> RankedGroup | None:
        return self.ranker.collect(timeout_s)

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        return self.ranker.list_pending()

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        return self.ranker.list_unanswered()

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        self.ranker.change_rewards(rewards)

    def cancel(self, *, withdraw: bool = False) -> None:
        self.ranker.cancel(withdraw=withdraw)

    def close(self) -> None:
        self.ranker.close()
