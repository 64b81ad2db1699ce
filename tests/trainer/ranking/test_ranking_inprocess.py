"""The books of groups in flight and the in-process ranker: policies, order, deadlines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from dipole.errors import RewardUnavailable
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.ranking.in_process import GroupMetadata, InProcessRanker, Scorer
from dipole_trainer.spec import RewardSpec


def group(name: str, value: int = 0, candidates: int = 4) -> CandidateGroup:
    images = np.full((candidates, 4, 4, 3), value, np.uint8)
    return CandidateGroup(id=name, step=0, prompt=name, metadata=None, images=images, seeds=range(candidates))


def by_index(prompt: str, images: np.ndarray, metadata: GroupMetadata) -> list[float | None]:
    return [float(index) for index in range(len(images))]


@pytest.fixture
def rankers() -> Iterator[list[InProcessRanker]]:
    made: list[InProcessRanker] = []
    yield made
    for ranker in made:
        ranker.close()


def test_groups_come_back_as_they_finish(rankers: list[InProcessRanker]) -> None:
    """A slow group does not hold back a fast one, and every group carries all rewards in the job's order."""

    def slow_first(prompt: str, images: np.ndarray, metadata: GroupMetadata) -> list[float | None]:
        time.sleep(0.5 if prompt == "slow" else 0)
        return by_index(prompt, images, metadata)

    rankers.append(ranker := InProcessRanker({"a": slow_first, "b": by_index}))
    ranker.submit(group("slow"))
    ranker.submit(group("fast"))
    first, second = ranker.collect(30), ranker.collect(30)
    assert first is not None
    assert second is not None
    assert [first.group_id, second.group_id] == ["fast", "slow"]
    assert list(first.results) == ["a", "b"]
    assert first.results["a"].scores == (0.0, 1.0, 2.0, 3.0)
    assert ranker.collect(0) is None


def boom(prompt: str, images: np.ndarray, metadata: GroupMetadata) -> list[float | None]:
    raise OSError("the scorer broke")


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        (boom, "the scorer broke"),
        (lambda *_: [1.0], "1 scores for 4"),
    ],
)
def test_a_failure_is_left_out_or_stops_the_job(scorer: Scorer, reason: str, rankers: list[InProcessRanker]) -> None:
    """The same failure leaves an optional reward out with the reason, and is RewardUnavailable for a required one."""
    optional = [RewardSpec(name="good"), RewardSpec(name="bad", required=False)]
    rankers.append(ranker := InProcessRanker({"good": by_index, "bad": scorer}, optional))
    ranker.submit(group("g"))
    ranked = ranker.collect(30)
    assert ranked is not None
    assert ranked.results["good"].failure is None
    assert ranked.results["bad"].scores == (None,) * 4
    assert reason in (ranked.results["bad"].failure or "")

    rankers.append(strict := InProcessRanker({"bad": scorer}))
    strict.submit(group("g"))
    with pytest.raises(RewardUnavailable, match="bad") as caught:
        strict.collect(30)
    assert caught.value.reward == "bad"
    assert caught.value.code == "invalid_response"


@pytest.mark.parametrize("given", [{}, {"required": True}, {"required": False}])
def test_a_held_out_reward_is_never_required(given: dict[str, bool], rankers: list[InProcessRanker]) -> None:
    """Whatever the job says, and as older jobs have it stored: one that fails or is silent leaves others alone."""
    watched = RewardSpec.model_validate_json(json.dumps({"name": "watched", "weight": 0, "timeout_s": 0.2, **given}))
    assert not watched.required
    assert RewardSpec(name="trained", weight=0.1).required
    for scorer, delays in ((boom, {}), (by_index, {"watched": 2.0})):
        scorers = {"good": by_index, "watched": scorer}
        rankers.append(ranker := InProcessRanker(scorers, [RewardSpec(name="good"), watched], delays=delays))
        ranker.submit(group("g"))
        ranked = ranker.collect(30)
        assert ranked is not None
        assert ranked.results["good"].scores == (0.0, 1.0, 2.0, 3.0)
        assert ranked.results["watched"].failure is not None


def test_too_few_scores_fail_that_group_alone(rankers: list[InProcessRanker]) -> None:
    """A required reward that scores too few candidates of one group does not stop the job: others are ranked."""

    def hates_one(prompt: str, images: np.ndarray, metadata: GroupMetadata) -> list[float | None]:
        return [math.nan, None, 1.0, math.inf] if prompt == "odd" else by_index(prompt, images, metadata)

    rankers.append(ranker := InProcessRanker({"r": hates_one}, threads=1))
    ranker.submit(group("odd"))
    ranker.submit(group("even"))
    odd, even = ranker.collect(30), ranker.collect(30)
    assert odd is not None
    assert even is not None
    assert odd.results["r"].scores == (None,) * 4
    assert (odd.results["r"].failure or "").startswith("too_few_scores: 1 of 4 candidates scored")
    assert even.results["r"].scores == (0.0, 1.0, 2.0, 3.0)


def test_single_candidates_fail_as_null_never_zero(rankers: list[InProcessRanker]) -> None:
    """NaN and missing scores become None with a reason each, while enough others are valid."""
    rankers.append(ranker := InProcessRanker({"r": lambda *_: [1.0, math.nan, None, 2.0]}))
    ranker.submit(group("g"))
    ranked = ranker.collect(30)
    assert ranked is not None
    assert ranked.results["r"].scores == (1.0, None, None, 2.0)
    assert set(ranked.results["r"].errors) == {1, 2}


def test_a_group_of_one_can_be_evaluated(rankers: list[InProcessRanker]) -> None:
    """min_valid asks for no more scores than the group has candidates."""
    rankers.append(ranker := InProcessRanker({"r": by_index}))
    ranker.submit(group("g", candidates=1))
    ranked = ranker.collect(30)
    assert ranked is not None
    assert ranked.results["r"].scores == (0.0,)


def test_a_deadline_counts_from_submission(rankers: list[InProcessRanker]) -> None:
    """A reward slower than its timeout_s is left out when optional and pauses when required."""
    specs = [RewardSpec(name="a"), RewardSpec(name="late", required=False, timeout_s=0.2)]
    rankers.append(ranker := InProcessRanker({"a": by_index, "late": by_index}, specs, delays={"late": 2}))
    ranker.submit(group("g"))
    ranked = ranker.collect(30)
    assert ranked is not None
    assert "timeout" in (ranked.results["late"].failure or "")
    rankers.append(
        strict := InProcessRanker({"late": by_index}, [RewardSpec(name="late", timeout_s=0.2)], delays={"late": 2})
    )
    strict.submit(group("g"))
    with pytest.raises(RewardUnavailable, match=r"0\.2 s"):
        strict.collect(30)


def test_cancelled_groups_are_forgotten_and_may_be_asked_again(rankers: list[InProcessRanker]) -> None:
    """After cancel nothing of the old groups comes back, and the same group can be submitted anew."""
    told: list[tuple[str, str, RewardResult]] = []
    rankers.append(
        ranker := InProcessRanker(
            {"r": by_index}, delays={"r": 0.2}, on_ranked=lambda g, name, result: told.append((g.id, name, result))
        )
    )
    ranker.submit(group("g"))
    ranker.cancel()
    ranker.submit(group("g"))
    assert ranker.collect(30) is not None
    assert ranker.collect(0.5) is None
    assert [(one, name) for one, name, _ in told] == [("g", "r")]
