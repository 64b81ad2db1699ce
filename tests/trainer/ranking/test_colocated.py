"""Rewards that share the trainer's GPU: rank workers have them sleep, before the trainer hears an answer."""

from __future__ import annotations

import pytest

from .ranking_harness import Endpoints, Harness, collect, group, reward

pytestmark = pytest.mark.usefixtures("rank_worker")
COLOCATED = {"colocated": True}


def test_a_colocated_reward_sleeps_when_nothing_is_left_to_rank(endpoint: Endpoints, harness: Harness) -> None:
    """After the last of several groups, and before the last answer; another reward is left alone."""
    shared, other = endpoint(slept=[]), endpoint(slept=[])
    ranker = harness.ranker(reward(shared, "shared", options=COLOCATED), reward(other, "other"), job="colocated")
    for name in ("a", "b", "c"):
        ranker.submit(group(name))
    collect(ranker, 3)
    assert shared.slept is not None
    assert shared.slept[-1] == 3
    assert other.slept == []
    ranker.submit(group("d"))
    collect(ranker)
    assert shared.slept[-1] == 4


def test_one_that_cannot_sleep_ranks_all_the_same(endpoint: Endpoints, harness: Harness) -> None:
    """A server of somebody's that has no such route."""
    ranker = harness.ranker(reward(endpoint(), "elsewhere", options=COLOCATED), job="elsewhere")
    ranker.submit(group("a"))
    assert collect(ranker)[0].results["elsewhere"].failure is None


def test_whether_it_is_colocated_does_not_change_what_an_answer_means(endpoint: Endpoints) -> None:
    """Kept answers stay good when it moves to the trainer's GPU."""
    asked = endpoint()
    one, two = reward(asked, "x"), reward(asked, "x", options=COLOCATED)
    assert one.endpoint.answer_identity() == two.endpoint.answer_identity()
    typed = [reward(asked, "x", options={"colocated": said}).endpoint.is_colocated for said in ("true", "false")]
    assert typed == [True, False]
