"""A group's order, told again from the ledger: what the training loop chose, or why it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dipole_trainer.datasets.recordings import RecordedGroup
from dipole_trainer.jobs.group_orders import NEEDS_RECORDING, ToldOrder, tell_order
from dipole_trainer.ranking.groups import RankedGroup, RewardResult
from dipole_trainer.ranking.selection import GroupOrder, order_group
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import DrpoSpec, MethodSpec, PromptSpec, RewardSpec

METHOD = MethodSpec(type="drpo", drpo=DrpoSpec(positives=2, negatives=2))
SCORES = (0.3, 0.9, 0.1, 0.5, 0.7, 0.2)
OTHER = (5.0, 1.0, 4.0, 9.0, 2.0, 3.0)
SEEDS = tuple(range(100, 106))


def ledger_entry(step: int = 3, index: int = 1, **scores: Sequence[float | None] | None) -> dict[str, Any]:
    """None stands for a reward that failed."""
    rewards = {
        name: {
            "scores": [None] * 6 if values is None else list(values),
            "failure": "timeout" if values is None else None,
        }
        for name, values in scores.items()
    }
    return {"group": f"ftjob-1.{step}.{index}", "step": step, "seeds": list(SEEDS), "rewards": rewards}


def recording(**results: RewardResult) -> RecordedGroup:
    return RecordedGroup(index=1, prompt=PromptSpec(prompt="a red square"), seeds=SEEDS, results=results)


def tell(entry: Mapping[str, Any], *rewards: RewardSpec, method: MethodSpec = METHOD, **more: Any) -> ToldOrder:
    return tell_order(entry, rewards, method, seed=7, candidates=6, **more)


def test_a_single_trained_reward_needs_no_recording() -> None:
    entry = ledger_entry(shapes=SCORES, watched=OTHER)
    found = tell(entry, RewardSpec(name="shapes"), RewardSpec(name="watched", weight=0, required=False))
    assert (tuple(found.positives), tuple(found.negatives)) == ((1, 4), (2, 5))


@pytest.mark.parametrize("ordinal", [False, True])
def test_several_are_combined_as_the_loop_did(ordinal: bool) -> None:
    """Whether a reward's scores only order the group changes the sum, and the recording has it."""
    rewards = (RewardSpec(name="shapes"), RewardSpec(name="colour", weight=2.0))
    results = {"shapes": RewardResult(scores=SCORES), "colour": RewardResult(scores=OTHER, ordinal=ordinal)}
    chosen = order_group(RankedGroup("g", results), rewards, positives=2, negatives=2)
    assert isinstance(chosen, GroupOrder)
    found = tell(ledger_entry(shapes=SCORES, colour=OTHER), *rewards, recorded=recording(**results))
    assert np.allclose([each or 0.0 for each in found.total], chosen.total)
    assert (found.positives, found.negatives) == (chosen.selection.positives, chosen.selection.negatives)


def test_several_without_a_recording_are_not_guessed() -> None:
    found = tell(ledger_entry(shapes=SCORES, colour=OTHER), RewardSpec(name="shapes"), RewardSpec(name="colour"))
    assert (found.unknown, found.total, found.positives) == (NEEDS_RECORDING, (), ())


def test_the_control_shows_the_shuffle_that_it_trained_on() -> None:
    method = MethodSpec(type="random", random=DrpoSpec(positives=2, negatives=2))
    rewards = (RewardSpec(name="shapes"),)
    (seed,) = derive_seeds(7, "shuffle", 3, 1, count=1)
    results = {"shapes": RewardResult(scores=SCORES)}
    shuffle = np.random.default_rng(seed)
    chosen = order_group(RankedGroup("g", results), rewards, positives=2, negatives=2, shuffle=shuffle)
    assert isinstance(chosen, GroupOrder)
    found = tell(ledger_entry(shapes=SCORES), *rewards, method=method)
    assert (found.positives, found.negatives) == (chosen.selection.positives, chosen.selection.negatives)


def test_a_candidate_that_left_the_group_has_no_place() -> None:
    """One without features is in the ledger with its score, and in the recording no more."""
    kept = RecordedGroup(
        index=1,
        prompt=PromptSpec(prompt="a red square"),
        seeds=SEEDS[:1] + SEEDS[2:],
        results={"shapes": RewardResult(scores=SCORES[:1] + SCORES[2:])},
    )
    found = tell(ledger_entry(shapes=SCORES), RewardSpec(name="shapes"), recorded=kept)
    assert found.total[1] is None
    assert tuple(found.positives) == (4, 3)


def test_why_a_group_was_skipped_is_told() -> None:
    shapes = RewardSpec(name="shapes")
    assert "no spread" in str(tell(ledger_entry(shapes=(0.5,) * 6), shapes).skipped)
    assert "timeout" in str(tell(ledger_entry(shapes=None), shapes).skipped)


def test_a_group_that_is_being_ranked_is_not_known_yet() -> None:
    found = tell(ledger_entry(watched=OTHER), RewardSpec(name="shapes"), RewardSpec(name="watched", weight=0))
    assert found.unknown == "shapes has not answered yet"
