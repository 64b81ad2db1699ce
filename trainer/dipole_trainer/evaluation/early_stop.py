"""When a job stops itself: its trained reward goes up at the cost of a held-out one, or of diversity.

One evaluation may find that by chance: 95 % intervals leave out the truth once in twenty times, and a run has many of
them. So a job stops where evaluations in a row find it, and of the same reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EVALUATIONS_IN_A_ROW = 2


@dataclass(frozen=True)
class EvaluatedStep:
    """`score` says how good it is; `hacking` is what statistics.reward_hacking found, None for nothing."""

    step: int
    score: float | None
    hacking: Mapping[str, Any] | None


@dataclass(frozen=True)
class EarlyStop:
    """Reward hacking from the evaluation at step `since` to the one at `step`; the checkpoint of `kept` is kept."""

    step: int
    since: int
    kept: int
    fallen: tuple[str, ...]
    what: str

    def reason(self) -> str:
        """A clause that follows what happens at `step`."""
        return (
            f"as {' and '.join(self.fallen)} fell in {EVALUATIONS_IN_A_ROW} evaluations in a row, since step "
            f"{self.since}: {self.what}; the checkpoint to keep is that of step {self.kept}"
        )


def find_early_stop(evaluated: Sequence[EvaluatedStep]) -> EarlyStop | None:
    """The first step at which a job stops, of its evaluations in the order of their steps, without the base's."""
    for end in range(EVALUATIONS_IN_A_ROW, len(evaluated) + 1):
        row = evaluated[end - EVALUATIONS_IN_A_ROW : end]
        last = row[-1]
        fallen = set.intersection(*(_fallen_names(each) for each in row))
        if fallen and last.hacking is not None:
            kept = choose_kept_step(evaluated[:end])
            assert kept is not None, "there are evaluations"
            return EarlyStop(last.step, row[0].step, kept, tuple(sorted(fallen)), str(last.hacking["what"]))
    return None


def choose_kept_step(evaluated: Sequence[EvaluatedStep]) -> int | None:
    """The best of the steps that hacked nothing, the earlier of equals; where all did, the first, which did it least.

    None without evaluations. A step without a score is taken only where none has one.
    """
    sound = [each for each in evaluated if each.hacking is None]
    if not sound:
        return evaluated[0].step if evaluated else None
    scores = [(each.score, each.step) for each in sound if each.score is not None]
    return max(scores, key=lambda each: (each[0], -each[1]))[1] if scores else sound[-1].step


def _fallen_names(each: EvaluatedStep) -> set[str]:
    return set(each.hacking["fallen"]) if each.hacking else set()
