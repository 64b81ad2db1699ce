"""Candidates without an image: rewards never see them, and they are nulls with their reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dipole_trainer.jobs.ranking_ledger import make_ledger_entry
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import RewardSpec

WHY = "not_finite: pixels of the VAE"


def make_group(flaws: dict[int, str]) -> CandidateGroup:
    images = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    return CandidateGroup("g", 0, "a star", None, images, (10, 11, 12, 13), flaws)


def rank(group: CandidateGroup, scorer: Any, **spec: Any) -> tuple[RankedGroup, list[Any]]:
    ledger: list[Any] = []
    ranker = InProcessRanker(
        {"any": scorer},
        [RewardSpec(name="any", **spec)],
        on_ranked=lambda group, reward, result: ledger.append(make_ledger_entry(group, reward, result)),
    )
    ranker.submit(group)
    ranked = ranker.collect(10)
    ranker.close()
    assert ranked is not None
    return ranked, ledger


def test_a_reward_is_asked_for_the_others_alone() -> None:
    """Scores keep the candidates' places, in the ledger too, and so do the reward's own reasons and parts."""

    def score(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        assert images[:, 0, 0, 0].tolist() == [0, 2, 3]
        return RewardResult(scores=(0.0, None, 3.0), sub_scores={"part": (1.0, None, 2.0)})

    ranked, (entry,) = rank(make_group({1: WHY}), score)
    result = ranked.results["any"]
    assert result.scores == (0.0, None, None, 3.0)
    assert result.sub_scores == {"part": (1.0, None, None, 2.0)}
    assert result.errors == {1: WHY, 2: "no score"}
    assert entry["ranking"]["scores"] == [0.0, None, None, 3.0]
    assert entry["ranking"]["errors"]["1"] == WHY
    assert ranked.of_rows([0, 2, 3]).results["any"].scores == (0.0, None, 3.0)
    assert ranked.of_rows([0, 2, 3]).results["any"].errors == {1: "no score"}


def test_a_group_without_any_image_is_no_rewards_fault() -> None:
    """It is not asked, though it is required, and the failure says what the images lack."""

    def score(prompt: str, images: np.ndarray, metadata: Any) -> Any:
        raise AssertionError("asked")

    ranked, ledger = rank(make_group(dict.fromkeys(range(4), WHY)), score, required=True)
    assert ranked.results["any"].failure == WHY
    assert ranked.results["any"].scores == (None,) * 4
    assert ledger == []


@pytest.mark.parametrize("flaws", [{}, {0: WHY, 3: WHY}])
def test_a_reward_that_fails_leaves_a_null_for_every_candidate(flaws: dict[int, str]) -> None:
    ranked, _ = rank(make_group(flaws), lambda prompt, images, metadata: [1.0], required=False)
    assert ranked.results["any"].scores == (None,) * 4
    assert "invalid_response" in str(ranked.results["any"].failure)
