"""Groups on their way: which answers are in, which are due, and what a missing one means. Clocks are passed in.

Both rankers keep their books here, so a policy means the same in a test and over Celery:
- a group finishes when every reward has answered or failed by its policy, in whichever order that happens;
- an optional reward that fails, or is past its deadline, is left out of that group with the reason;
- a required one that fails for good, or is past its deadline, raises RewardUnavailable;
- an answer that came but scores too few candidates is a failure of that group alone, also of a required reward: a
  resumed job would get the same answer.
A candidate without an image is a null with its reason, and a group that has no other a failure of its own: no reward
is asked, and none is to blame. Deadlines count from the group's submission. The first answer wins; later ones, and
answers of forgotten groups, are ignored.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dipole.errors import RewardUnavailable
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.spec import RewardSpec

GROUP_FAILURES = ("too_few_scores", "not_finite")  # codes of answers that came, and give no order

OnRanked = Callable[[CandidateGroup, str, RewardResult], None]


def failed_result(candidates: int, reason: str, *, seconds: float = 0.0) -> RewardResult:
    """Nothing usable from a reward: every score None and the reason said."""
    return RewardResult(scores=(None,) * candidates, failure=reason, seconds=seconds)


def apply_policy(
    spec: RewardSpec, candidates: int, scores: Sequence[float | None], errors: Mapping[int, str] | None = None
) -> RewardResult:
    """A reward's scores judged by its policy: wrong counts and too few valid scores are failures.

    A score that is missing or not finite becomes None with a reason, never 0. `min_valid` counts at most the
    group's own size, so that a group of one image can be evaluated.
    """
    if len(scores) != candidates:
        return failed_result(candidates, f"invalid_response: {len(scores)} scores for {candidates} candidates")
    kept = [None if score is None or not math.isfinite(score) else float(score) for score in scores]
    reasons = dict(errors or {})
    for index, score in enumerate(kept):
        if score is None:
            reasons.setdefault(index, "no score" if scores[index] is None else f"score {scores[index]} is not finite")
    valid = candidates - kept.count(None)
    if valid < min(spec.min_valid, candidates):
        first = next(iter(reasons.values()), "no reason given")
        why = f"too_few_scores: {valid} of {candidates} candidates scored, min_valid is {spec.min_valid} ({first})"
        return replace(failed_result(candidates, why), errors=reasons)
    return RewardResult(scores=tuple(kept), errors=reasons)


@dataclass
class _OpenGroup:
    """A group with answers missing."""

    group: CandidateGroup
    submitted: float
    results: dict[str, RewardResult] = field(default_factory=dict)


class GroupsInFlight:
    """The books. `now` is any monotonic clock in seconds, the same for all calls."""

    def __init__(self, specs: Sequence[RewardSpec], on_ranked: OnRanked | None = None) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._on_ranked = on_ranked
        self._open_groups: dict[str, _OpenGroup] = {}
        self._finished: deque[RankedGroup] = deque()

    def add_group(self, group: CandidateGroup, now: float) -> bool:
        """Whether rewards are to be asked for it."""
        if group.id in self._open_groups:
            raise ValueError(f"group {group.id} is in flight already")
        self._open_groups[group.id] = _OpenGroup(group, now)
        if len(group.flaws) < len(group.images):
            return True
        for reward in self.specs:
            self.put_result(group.id, reward, failed_result(0, next(iter(group.flaws.values()))))
        return False

    def waiting_group(self, group_id: str, reward: str) -> CandidateGroup | None:
        """The group, while it still waits for this reward."""
        entry = self._open_groups.get(group_id)
        return None if entry is None or reward in entry.results or reward not in self.specs else entry.group

    def put_result(self, group_id: str, reward: str, result: RewardResult) -> bool:
        """Take an answer for the group `without_flaws`; False when it is a duplicate or nobody waits for the group.

        Raises RewardUnavailable when a required reward failed and not by this group's scores alone.
        """
        if self.waiting_group(group_id, reward) is None:
            return False
        entry = self._open_groups[group_id]
        code = (result.failure or "").partition(":")[0]
        if result.failure is not None and self.specs[reward].required and code not in GROUP_FAILURES:
            raise RewardUnavailable(f"reward {reward}: {result.failure}", reward=reward, code=code)
        entry.results[reward] = result = result.with_flaws(entry.group.flaws)
        if result.failure is None and self._on_ranked is not None:
            self._on_ranked(entry.group, reward, result)
        if len(entry.results) == len(self.specs):
            del self._open_groups[group_id]
            ordered = {name: entry.results[name] for name in self.specs}
            self._finished.append(RankedGroup(group_id=group_id, results=ordered))
        return True

    def expire_overdue(self, now: float, reasons: Mapping[tuple[str, str], str] | None = None) -> None:
        """Fail what is past its deadline. `reasons` may tell the last thing heard, by (group id, reward)."""
        for group_id, reward, deadline in list(self.deadlines()):
            if now < deadline:
                continue
            last = (reasons or {}).get((group_id, reward))
            why = f"timeout: no ranking within {self.specs[reward].timeout_s:g} s" + (f" ({last})" if last else "")
            entry = self._open_groups[group_id]
            asked = len(entry.group.images) - len(entry.group.flaws)
            self.put_result(group_id, reward, failed_result(asked, why, seconds=now - entry.submitted))

    def deadlines(self) -> Iterator[tuple[str, str, float]]:
        """(group id, reward, when) of every answer still missing."""
        for group_id, entry in self._open_groups.items():
            for name, spec in self.specs.items():
                if name not in entry.results:
                    yield group_id, name, entry.submitted + spec.timeout_s

    def pop_finished(self) -> RankedGroup | None:
        """The group that finished first and was not taken yet."""
        return self._finished.popleft() if self._finished else None

    def clear(self) -> None:
        self._open_groups.clear()
        self._finished.clear()

    def __len__(self) -> int:
        """Groups not yet taken, finished or not."""
        return len(self._open_groups) + len(self._finished)
