"""From answers to an order: policies, the control, and what rounding must not decide."""

from __future__ import annotations

import numpy as np
import pytest

from dipole_trainer.ranking.groups import RankedGroup, RewardResult
from dipole_trainer.ranking.selection import (
    GroupOrder,
    Selection,
    SkippedGroup,
    WeightedScores,
    combine_scores,
    normalize_scores,
    order_group,
    select_extremes,
    shuffle_scores,
)
from dipole_trainer.spec import RewardSpec


def group(*scores: float | None) -> RankedGroup:
    return RankedGroup("g", {"r": RewardResult(scores=scores)})


def test_the_control_is_the_same_scores_in_another_order() -> None:
    """Exactly `shuffled(total, rng)`, and not the order that was given."""
    found = order_group(group(1.0, 2.0, None, 4.0, 5.0, 6.0), [RewardSpec(name="r")], positives=2, negatives=2,
                  shuffle=np.random.default_rng(3))  # fmt: skip
    plain = order_group(group(1.0, 2.0, None, 4.0, 5.0, 6.0), [RewardSpec(name="r")], positives=2, negatives=2)
    assert isinstance(found, GroupOrder)
    assert isinstance(plain, GroupOrder)
    assert plain.selection == Selection((5, 4), (0, 1))
    assert found.selection == select_extremes(shuffle_scores(plain.total, np.random.default_rng(3)), 2, 2)
    assert found.selection != plain.selection
    assert sorted(found.total[np.isfinite(found.total)]) == sorted(plain.total[np.isfinite(plain.total)])


@pytest.mark.parametrize("how", ["zscore", "rank"])
def test_rounding_is_no_preference(how: str) -> None:
    """0.1 + 0.2 and 0.3 are equal scores: alone they give no order, and beside another reward they add nothing."""
    noise = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    alone = combine_scores({"r": WeightedScores(noise, 1.0, how)})  # type: ignore[arg-type]
    assert isinstance(select_extremes(alone, 1, 1), SkippedGroup)
    clear = [0.0, 1.0, 2.0, 3.0]
    both = combine_scores({"r": WeightedScores(noise, 9.0, how), "s": WeightedScores(clear, 1.0, how)})  # type: ignore[arg-type]
    assert both.tolist() == pytest.approx(normalize_scores(np.array(clear), how).tolist())  # type: ignore[arg-type]


def test_small_scores_are_scores() -> None:
    """Equal is relative to the largest: probabilities of 1e-12 order as well as any."""
    assert select_extremes(combine_scores({"r": WeightedScores([1e-12, 2e-12, 3e-12], 1.0)}), 1, 1) == Selection(
        (2,), (0,)
    )


def test_a_required_reward_without_an_answer_skips_the_group() -> None:
    failed = RankedGroup("g", {"r": RewardResult((1.0, 2.0)), "s": RewardResult((None, None), failure="timeout: 60 s")})
    rewards = [RewardSpec(name="r"), RewardSpec(name="s")]
    found = order_group(failed, rewards, positives=1, negatives=1)
    assert isinstance(found, SkippedGroup)
    assert found.reason == "required reward s: timeout: 60 s"
    optional = [RewardSpec(name="r"), RewardSpec(name="s", required=False)]
    assert isinstance(order_group(failed, optional, positives=1, negatives=1), GroupOrder)
