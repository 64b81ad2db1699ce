"""Does a cheaper decoder's image rank as the VAE's does? Groups that have both are ranked on both, and compared.

Such a group is sent twice, the second time under its id and TWIN. Training goes by the ranking of the VAE's images; it
waits for the other, so that the agreement stands in the figures of the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.ranking.forwarding.forwarding_ranker import ForwardingRanker
from dipole_trainer.ranking.groups import TWIN, Agreement, CandidateGroup, RankedGroup, Ranker, RankingBacklog
from dipole_trainer.ranking.selection import SkippedGroup, order_group
from dipole_trainer.spec import RewardSpec

RECENT_CHECKS = 4  # whose mean is looked at
MIN_TAU = 0.7  # of their mean: below it a fifth of all pairs of candidates have changed places, or rather more


class DecoderCheck(ForwardingRanker):
    """The run's ranker, which has groups with `compared` images ranked twice. `sides` are P and N."""

    def __init__(
        self, ranker: Ranker, rewards: Sequence[RewardSpec], sides: tuple[int, int], on_event: OnEvent
    ) -> None:
        super().__init__(ranker)
        self._rewards, self._sides, self._on_event = rewards, sides, on_event
        self._steps: dict[str, int] = {}  # of the groups that are ranked twice
        self._answers: dict[str, dict[bool, RankedGroup]] = {}  # the first of two, by whether it is the twin's
        self._recent: deque[float] = deque(maxlen=RECENT_CHECKS)
        self._has_warned = False

    def submit(self, group: CandidateGroup) -> None:
        super().submit(replace(group, compared=None))
        if group.compared is not None:
            self._steps[group.id] = group.step
            super().submit(replace(group, id=group.id + TWIN, images=group.compared, compared=None))

    def collect(self, timeout_s: float) -> RankedGroup | None:
        ranked = super().collect(timeout_s)
        if ranked is None:
            return None
        group_id = ranked.group_id.removesuffix(TWIN)
        if group_id not in self._steps:
            return None if ranked.group_id != group_id else ranked
        answers = self._answers.setdefault(group_id, {})
        answers[ranked.group_id != group_id] = ranked
        if len(answers) < 2:
            return None
        del self._answers[group_id]
        return self._compare(answers[False], answers[True], self._steps.pop(group_id))

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        found = super().list_pending()
        return {name: replace(each, waiting=_waits_of_groups(each.waiting)) for name, each in found.items()}

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        return {name: _waits_of_groups(waiting) for name, waiting in super().list_unanswered().items()}

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        self._rewards = rewards
        super().change_rewards(rewards)

    def cancel(self, *, withdraw: bool = False) -> None:
        self._steps.clear()
        self._answers.clear()
        super().cancel(withdraw=withdraw)

    def _compare(self, exact: RankedGroup, tiny: RankedGroup, step: int) -> RankedGroup:
        """The exact ranking, with how far the other agrees; without where one of them gives no order. What either was
        told of rewards is told.
        """
        silent = {**exact.became_silent, **tiny.became_silent}
        exact = replace(exact, became_silent=silent, came_back=[*exact.came_back, *tiny.came_back])
        positives, negatives = self._sides
        orders = [order_group(each, self._rewards, positives=positives, negatives=negatives) for each in (exact, tiny)]
        first, second = orders
        if isinstance(first, SkippedGroup) or isinstance(second, SkippedGroup):
            return exact
        chosen, others = first.selection, second.selection
        shared = len(set(chosen.positives) & set(others.positives)) + len(set(chosen.negatives) & set(others.negatives))
        agreement = Agreement(
            tau=kendall_tau(first.total, second.total),
            overlap=shared / (len(chosen.positives) + len(chosen.negatives)),
        )
        self._report(agreement, step)
        return replace(exact, agreement=agreement)

    def _report(self, agreement: Agreement, step: int) -> None:
        tau, overlap = round(agreement.tau, 4), round(agreement.overlap, 4)
        job_events.DecoderChecked(step=step, tau=tau, overlap=overlap).report(self._on_event)
        self._recent.append(agreement.tau)
        mean = float(np.mean(self._recent))
        fell = len(self._recent) == RECENT_CHECKS and mean < MIN_TAU
        if fell and not self._has_warned:
            job_events.DecoderDisagrees(step=step, tau=round(mean, 4), checks=RECENT_CHECKS).report(self._on_event)
        self._has_warned = fell


def _waits_of_groups(waiting: Mapping[str, float]) -> dict[str, float]:
    """A twin's wait is its group's; of two the longer."""
    found: dict[str, float] = {}
    for each, seconds in waiting.items():
        group_id = each.removesuffix(TWIN)
        found[group_id] = max(seconds, found.get(group_id, 0.0))
    return found


def kendall_tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Kendall's τ-b of two scorings of the same candidates (K,), of those that both score; 0 where one has no order."""
    both = np.isfinite(first) & np.isfinite(second)
    a, b = (np.sign(each[both][:, None] - each[both][None]) for each in (first, second))
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else 0.0
