"""What a step's event reports: counted per group, added up over processes, told once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.spec import RewardSpec

COUNTS = ("skipped", "not_finite", "staleness", "filled_in", "gated", "graphs_kept")


@dataclass
class StepMetrics:
    """Values by name, one a group."""

    rewards: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    skipped: int = 0
    not_finite: int = 0  # candidates
    late: int = 0  # groups that a required reward left pending at its deadline
    filled_in: int = 0  # groups of later steps, in place of some that were pending
    gated: int = 0  # candidates that fail a gate
    graphs_kept: int = 0  # samples that were not drawn again for their gradient
    agreement: dict[str, list[float]] = field(default_factory=dict)  # of the tiny decoder's orders with the VAE's
    staleness: int = 0  # most updates since a group was drawn
    untrained: dict[str, int] = field(default_factory=dict)  # why groups gave no gradient: how many

    def add_ranked(self, group: RankedGroup, rewards: Sequence[RewardSpec]) -> None:
        """Mean and spread of each reward's scores; ranks compare only within their group, so theirs tell nothing."""
        for reward in rewards:
            result = group.results[reward.name]
            values = [score for score in result.scores if score is not None]
            if result.failure is None and not result.ordinal:
                self.rewards.setdefault(reward.name, []).append(float(np.mean(values)))
                self.spread.setdefault(reward.name, []).append(float(np.std(values)))
        if group.agreement is not None:
            for name, value in asdict(group.agreement).items():
                self.agreement.setdefault(f"decoder_{name}", []).append(value)

    def add_untrained(self, reason: str) -> None:
        self.untrained[reason] = self.untrained.get(reason, 0) + 1

    def add_loss(self, figures: Mapping[str, float]) -> None:
        """`loss` and its parts, of one group."""
        for name, value in figures.items():
            self.losses.setdefault(name, []).append(value)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Another process's tally, as `asdict` gave it."""
        for name in ("skipped", "not_finite", "late", "filled_in", "gated", "graphs_kept"):
            setattr(self, name, getattr(self, name) + other[name])
        self.staleness = max(self.staleness, other["staleness"])
        self.untrained = dict(Counter(self.untrained) + Counter(other["untrained"]))
        for mine, theirs in (
            (getattr(self, name), other[name]) for name in ("rewards", "spread", "losses", "agreement")
        ):
            for name, values in theirs.items():
                mine.setdefault(name, []).extend(values)

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    def means(self) -> dict[str, Any]:
        """`loss` and its parts, `rewards`, `spread`, COUNTS, and the decoders' agreement where it is known."""
        losses = {"loss": None, **{name: float(np.mean(values)) for name, values in self.losses.items()}}
        by_reward = {
            part: {name: float(np.mean(values)) for name, values in getattr(self, part).items()}
            for part in ("rewards", "spread")
        }
        counts = {name: getattr(self, name) for name in COUNTS}
        agreement = {name: float(np.mean(values)) for name, values in self.agreement.items()}
        return {**losses, **by_reward, **counts, **agreement}
