"""The plug-in contract: import strings, ranks, nulls, wrong counts, golden checks; and the colourfulness reward."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from dipole.errors import ConfigurationError
from dipole.protocol.schemas import ItemError
from dipole_rewards.reward import (
    Golden,
    Pixels,
    Reward,
    RewardFault,
    Scores,
    check_golden,
    choose_device,
    import_reward,
    rank_items,
)
from dipole_rewards.rewards.colourfulness import Colourfulness, measure_colourfulness


class Brightness(Reward):
    """A custom reward, as a user would write it."""

    name = "brightness"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        return Scores([float(image.mean()) / 255 for image in images])

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.full((2, 2, 3), 255, np.uint8), score=1.0)


class Drifted(Brightness):
    def golden(self) -> Golden:
        return Golden(prompt="", image=np.zeros((2, 2, 3), np.uint8), score=1.0)


class Nameless(Reward):
    score = Brightness.score
    golden = Brightness.golden


def test_a_reward_is_found_by_its_import_string() -> None:
    """module:Class of a class written in this very file."""
    assert import_reward(f"{__name__}:Brightness") is Brightness


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("dipole_rewards.rewards.colourfulness", "or module:Class, as in"),
        ("dipole_rewards.rewards.colorfulness:Colourfulness", "no module 'dipole_rewards.rewards.colorfulness'"),
        ("dipole_rewards.rewards.colourfulness:Colorfulness", "it offers Colourfulness"),
        ("dipole_rewards.reward:Reward", "not a concrete subclass"),
        ("dipole_rewards.reward:Scores", "not a concrete subclass"),
        (f"{__name__}:Nameless", "needs a `name`"),
    ],
)
def test_a_typo_fails_with_one_readable_sentence(path: str, sentence: str) -> None:
    """The error quotes the setting and says what to mend."""
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD=") as caught:
        import_reward(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ties_share_a_rank_and_the_next_is_skipped() -> None:
    """Competition ranking: 1, 2, 2, 4."""
    items = rank_items(list("abcd"), Scores([0.5, 0.9, 0.1, 0.5]))
    assert [item.rank for item in items] == [2, 1, 4, 2]


def test_a_failure_is_null_with_a_reason_and_never_zero() -> None:
    """NaN, infinity and None have neither score nor rank; a given reason is kept."""
    reason = ItemError(code="no_face", message="nobody to look at")
    items = rank_items(list("abcd"), Scores([float("nan"), 0.0, None, float("inf")], errors={2: reason}))
    assert [item.score for item in items] == [None, 0.0, None, None]
    assert [item.rank for item in items] == [None, 1, None, None]
    assert [item.error.code if item.error else None for item in items] == ["non_finite", None, "no_face", "non_finite"]


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=12))
def test_ranks_agree_with_scores(scores: list[float | None]) -> None:
    """For any scores: better means a smaller rank, equal means equal, and somebody is first if anybody is scored."""
    items = rank_items([str(index) for index in range(len(scores))], Scores(scores))
    known = [item for item in items if item.score is not None]
    assert all((item.error is None) == (item.rank is not None) == (item.score is not None) for item in items)
    for one in known:
        for other in known:
            assert one.score is not None
            assert other.score is not None
            assert one.rank is not None
            assert other.rank is not None
            assert (one.score > other.score) == (one.rank < other.rank)
    assert not known or min(item.rank or 0 for item in known) == 1


@pytest.mark.parametrize("scores", [Scores([1.0]), Scores([1.0, 2.0], sub_scores=[{}]), Scores([1, 2], tiers=[1])])
def test_a_wrong_count_is_a_fault(scores: Scores) -> None:
    """Nothing is padded or cut."""
    with pytest.raises(RewardFault, match="for 2 images") as caught:
        rank_items(["a", "b"], scores)
    assert caught.value.code == "wrong_count"


def test_the_golden_check_tells_right_from_wrong() -> None:
    """A matching score passes, another one is a fault that names both numbers."""
    check_golden(Brightness())
    with pytest.raises(RewardFault, match=r"0\.0, not 1\.0"):
        check_golden(Drifted())


def test_colourfulness_follows_the_paper() -> None:
    """Grey is 0; a pure colour has mean only; red and cyan halves match numbers worked out by hand."""
    check_golden(Colourfulness.load("cpu"))
    assert measure_colourfulness(np.full((4, 4, 3), 90, np.uint8)) == (0.0, 0.0)
    spread, mean = measure_colourfulness(np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert spread == 0
    assert mean == pytest.approx(0.3 * np.hypot(255, 127.5))
    halves = np.zeros((2, 2, 3), np.uint8)
    halves[:, 0], halves[:, 1] = (255, 0, 0), (0, 255, 255)  # rg = ±255, yb = ±127.5: means 0
    assert measure_colourfulness(halves) == pytest.approx((np.hypot(255, 127.5), 0.0))


@given(st.integers(0, 2**32 - 1))
def test_colourfulness_does_not_depend_on_where_pixels_are(seed: int) -> None:
    """Shuffling pixels changes nothing; images of different sizes may be scored together."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    shuffled = rng.permutation(image.reshape(-1, 3)).reshape(7, 5, 3)
    first, second = Colourfulness().score(prompt="", images=[image, shuffled], metadata=None).scores
    assert first == pytest.approx(second)


def test_weights_go_to_the_gpu_that_torch_sees_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without weights, whose module loads no torch, loads none for this either."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
    monkeypatch.delitem(sys.modules, "torch")
    assert choose_device("auto") == "cpu"
    assert "torch" not in sys.modules
