"""A ranker that asks nobody: for answers that are there already, and for images that no reward is asked about."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog, RewardResult
from dipole_trainer.spec import RewardSpec


class KnownAnswersRanker:
    """A groups.Ranker for answers that are there already. Of a group that is submitted it knows no scores."""

    def __init__(self) -> None:
        self._answers: deque[RankedGroup] = deque()

    def put_answer(self, group_id: str, results: dict[str, RewardResult]) -> None:
        self._answers.append(RankedGroup(group_id, results))

    def takes_latents(self) -> bool:
        return False

    def submit(self, group: CandidateGroup) -> None:
        self.put_answer(group.id, {})

    def collect(self, timeout_s: float) -> RankedGroup | None:
        return self._answers.popleft() if self._answers else None

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        return {}

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        return {}

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        pass  # nothing is asked

    def cancel(self, *, withdraw: bool = False) -> None:
        self._answers.clear()

    def close(self) -> None:
        self.cancel()
