"""A tiny decoder's images beside the VAE's: who is asked twice, what is compared, when it is said to be too little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from dipole_trainer.ranking.forwarding.decoder_check import RECENT_CHECKS, DecoderCheck, kendall_tau
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import RewardSpec

K = 8
REWARDS = (RewardSpec(name="bright"),)


def images(levels: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """K images, each of one level."""
    return np.broadcast_to(np.asarray(levels, np.uint8)[:, None, None, None], (len(levels), 4, 4, 3)).copy()


def ranked_twice(check: DecoderCheck, name: str, exact: Any, tiny: Any = None) -> RankedGroup:
    compared = None if tiny is None else images(tiny)
    check.submit(CandidateGroup(name, 3, "a star", None, images(exact), range(K), compared=compared))
    for _ in range(100):
        if (ranked := check.collect(1.0)) is not None:
            return ranked
    raise AssertionError("no answer")


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def check(events: list[tuple[str, dict[str, Any]]]) -> DecoderCheck:
    ranker = InProcessRanker({"bright": lambda prompt, found, metadata: found.mean((1, 2, 3)).tolist()}, REWARDS)
    return DecoderCheck(ranker, REWARDS, (2, 2), lambda kind, data: events.append((kind, data)))


def test_the_vae_s_order_is_trained_on_and_the_agreement_told(check: DecoderCheck, events: list[Any]) -> None:
    """Two neighbours changed places across a cut: one of 28 pairs, and one of the four chosen."""
    exact = np.arange(K) * 10
    tiny = exact[[0, 2, 1, 3, 4, 5, 6, 7]]
    ranked = ranked_twice(check, "g", exact, tiny)
    assert ranked.group_id == "g"
    assert ranked.results["bright"].scores == tuple(map(float, exact))
    assert ranked.agreement is not None
    assert ranked.agreement.tau == pytest.approx(1 - 2 / 28)
    assert ranked.agreement.overlap == 0.75
    assert events == [("decoder_checked", {"step": 3, "tau": pytest.approx(1 - 2 / 28, abs=1e-4), "overlap": 0.75})]


def test_groups_without_a_twin_pass_and_one_without_an_order_compares_nothing(
    check: DecoderCheck, events: list[Any]
) -> None:
    assert ranked_twice(check, "plain", np.arange(K)).agreement is None
    assert ranked_twice(check, "flat", np.arange(K), np.full(K, 7)).agreement is None
    assert events == []


def test_a_fall_is_said_once_until_it_is_over(check: DecoderCheck, events: list[Any]) -> None:
    """The mean of the last few falls below the least that is good; it may rise and fall again."""
    up, down = np.arange(K) * 10, np.arange(K)[::-1] * 10
    for number, tiny in enumerate([up] * RECENT_CHECKS + [down] * 3 + [up] * RECENT_CHECKS + [down] * 2):
        ranked_twice(check, f"g{number}", up, tiny)
    told = [kind for kind, _ in events]
    assert told.count("decoder_disagrees") == 2
    assert told.count("decoder_checked") == 2 * RECENT_CHECKS + 5


def test_what_is_cancelled_is_forgotten(check: DecoderCheck) -> None:
    """A resumed run submits the group anew."""
    check.submit(CandidateGroup("g", 0, "p", None, images(range(K)), range(K), compared=images(range(K))))
    check.cancel()
    assert ranked_twice(check, "g", np.arange(K)).agreement is None


def test_kendall_s_tau_is_scipy_s() -> None:
    """With ties, and with candidates that only one of the two scores."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 5, (2, 9)).astype(float)
        first[rng.integers(9)] = np.nan
        both = np.isfinite(first)
        assert kendall_tau(first, second) == pytest.approx(kendalltau(first[both], second[both]).statistic)
    assert kendall_tau(np.ones(4), np.arange(4.0)) == 0.0


def test_changed_weights_are_compared_by_and_what_a_twin_was_told_is_told(events: list[Any]) -> None:
    """From the change on the order is that of the rewards as they weigh then; a reward that became silent with the
    twin's answer is said to be so.
    """
    scorers = {
        "bright": lambda prompt, found, metadata: found.mean((1, 2, 3)).tolist(),
        "same": lambda prompt, found, metadata: list(range(len(found))),
    }
    rewards = (RewardSpec(name="bright"), RewardSpec(name="same", weight=0))

    class TwinsAreTold(InProcessRanker):
        def collect(self, timeout_s: float) -> RankedGroup | None:
            ranked = super().collect(timeout_s)
            is_twin = ranked is not None and ranked.group_id.endswith(".tiny")
            return replace(ranked, became_silent={"same": "why"}) if ranked is not None and is_twin else ranked

    check = DecoderCheck(
        TwinsAreTold(scorers, rewards), rewards, (2, 2), lambda kind, data: events.append((kind, data))
    )
    up, down = np.arange(K) * 10, np.arange(K)[::-1] * 10
    before = ranked_twice(check, "before", up, down)
    check.change_rewards((RewardSpec(name="bright", weight=0), RewardSpec(name="same")))
    after = ranked_twice(check, "after", up, down)
    assert [each.agreement and each.agreement.tau for each in (before, after)] == pytest.approx([-1, 1])
    assert after.became_silent == {"same": "why"}


def test_who_waits_for_a_twin_waits_for_its_group() -> None:
    """Under the id that the loop knows, and for the longer of both; what else a backlog says stays."""

    class Slow(InProcessRanker):
        def list_pending(self) -> dict[str, RankingBacklog]:
            return {"people": RankingBacklog({"g.tiny": 2.0, "h": 3.0, "h.tiny": 4.0, "i": 1.0}, 5, 0.5)}

        def list_unanswered(self) -> dict[str, dict[str, float]]:
            return {"people": {"g.tiny": 6.0}, "bright": {}}

    check = DecoderCheck(Slow({}), REWARDS, (2, 2), lambda kind, data: None)
    assert check.list_pending() == {"people": RankingBacklog({"g": 2.0, "h": 4.0, "i": 1.0}, 5, 0.5)}
    assert check.list_unanswered() == {"people": {"g": 6.0}, "bright": {}}
