"""What the author of a Reward class is told: whole sentences that name what the class must do, never Python's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import JsonValue

from dipole.conformance import inputs
from dipole.errors import ConfigurationError
from dipole.protocol.schemas import ItemError
from dipole_rewards.reward import (
    BatchedReward,
    CandidateImages,
    Golden,
    Pixels,
    Reward,
    RewardFault,
    Scores,
    check_attributes,
    check_golden,
    import_reward,
    rank_items,
)

from .conftest import Serve

PYTHON = (
    "object has no attribute",
    "positional argument",
    "not iterable",
    "unpack",
    "must be real number",
    "Input should",
)


class Given(Reward):
    """Answers what a test gives it, right or wrong; its golden image has the score 0."""

    name = "given"
    answer: Any = None

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        if prompt == "golden":
            return Scores([0.0])
        answer: Scores = type(self).answer
        return answer

    def golden(self) -> Golden:
        return Golden(prompt="golden", image=np.zeros((2, 2, 3), np.uint8), score=0.0)


WRONG: list[tuple[Any, str]] = [
    ([0.1, 0.2], "score() returned a list, not Scores: return Scores([0.5, …])"),
    (None, "score() returned None, not Scores"),
    (np.array([0.1, 0.2]), "score() returned a ndarray, not Scores"),
    (0.5, "score() returned a float, not Scores"),
    (Scores(0.5), "Scores(scores=…) is a float, not a list"),  # type: ignore[arg-type]
    (Scores("ab"), "Scores(scores=…) is a str, not a list"),  # type: ignore[arg-type]
    (Scores(iter([1.0, 2.0])), "Scores(scores=…) is a list_iterator, not a list"),  # type: ignore[arg-type]
    (Scores(["high", "low"]), "score 0 is a str, not a number or None"),  # type: ignore[list-item]
    (Scores([1.0, [2.0]]), "score 1 is a list, not a number"),  # type: ignore[list-item]
    (Scores([1.0, np.zeros(3)]), "score 1 is a ndarray, not a number"),  # type: ignore[list-item]
    (Scores([1.0, 2.0], sub_scores={"a": [1, 2]}), "Scores(sub_scores=…) is a dict, not a list"),  # type: ignore[arg-type]
    (Scores([1.0, 2.0], sub_scores=[{"a": 1}, [2]]), "sub_scores[1] is a list, not a dict of names"),  # type: ignore[list-item]
    (Scores([1.0, 2.0], sub_scores=[{"a": "x"}, {}]), "sub_scores[0]['a'] is a str, not a number"),  # type: ignore[dict-item]
    (Scores([None, 2.0], errors=["bad"]), "Scores(errors=…) is a list, not a dict"),  # type: ignore[arg-type]
    (Scores([None, 2.0], errors={0: "bad"}), "errors[0] is a str, not ItemError(code=…, message=…)"),  # type: ignore[dict-item]
    (Scores([1.0, 2.0], tiers=["a", "b"]), "tiers[0] is a str, not a number"),  # type: ignore[list-item]
    (Scores([1.0, 2.0], tiers=[0, 1]), "Scores of image 0 cannot be sent: tier"),
    (Scores([1.0, 2.0], usage=[1]), "Scores(usage=…) is a list, not a dict"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("answer", "sentence"), WRONG, ids=[sentence[:40] for _, sentence in WRONG])
def test_what_is_no_scores_is_told_in_a_sentence(answer: Any, sentence: str) -> None:
    """It says what came, and what to return instead."""
    with pytest.raises(RewardFault) as caught:
        rank_items(["a", "b"], answer)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "scores",
    [
        np.array([0.5, 0.25], np.float32),
        np.array([1, 0]),
        (True, False),
        [np.float16(0.5), np.array([0.25])],
    ],
)
def test_numbers_of_any_kind_are_scores(scores: Any) -> None:
    """numpy's arrays and numbers, and tensors of one, are as good as Python's."""
    assert [item.rank for item in rank_items(["a", "b"], Scores(scores))] == [1, 2]


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [[0.1], None, Scores(["x"]), Scores([None], errors={0: "x"})], ids=range(4))  # type: ignore[list-item,dict-item]
async def test_a_caller_is_told_the_same_sentence(serve: Serve, answer: Any) -> None:
    """500, which is the reward's fault, in words that its author can act on."""
    Given.answer = answer
    image = {"media_type": "image/png", "data": PNG}
    async with serve(reward=f"{__name__}:Given") as client:
        found = await client.post("/v1/rank", json={"prompt": "p", "candidates": [{"id": "a", "image": image}]})
    assert found.status_code == 500
    detail = found.json()["detail"]
    assert any(word in detail for word in ("not Scores", "not a number", "not ItemError"))
    assert not any(words in detail for words in PYTHON)


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR4AWM8ISfHgA0wYRMEiQ1OCQDQygEUOaTDKQAAAABJRU5ErkJggg=="


class ListAtStart(Given):
    def score(self, **_: Any) -> Any:
        return [0.0]


class TupleForGolden(Given):
    def golden(self) -> Any:
        return ("", np.zeros((2, 2, 3)), 0.0)


def test_the_check_at_start_says_the_same() -> None:
    """A list from score(), and a golden() that returns something else, stop the start with a sentence."""
    with pytest.raises(RewardFault, match=r"score\(\) returned a list, not Scores"):
        check_golden(ListAtStart())
    with pytest.raises(RewardFault, match=r"golden\(\) returned a tuple, not Golden: return Golden\(prompt="):
        check_golden(TupleForGolden())


class Batched(BatchedReward):
    name = "batched"

    def score_groups(self, groups: Sequence[CandidateImages]) -> Any:
        return []

    golden = Given.golden


def test_a_batched_reward_that_forgets_a_group_is_told() -> None:
    """Not how Python failed to unpack it."""
    with pytest.raises(RewardFault, match=r"score_groups\(\) returned 0 Scores for 1 group"):
        check_golden(Batched())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_revision": 2}, "Given.model_revision is 2: it must be text"),
        ({"name": ["x"]}, "Given.name is ['x']: it must be text"),
        ({"recipe_version": "x" * 300}, "at most 255 characters"),
        ({"calibrated": "no"}, "Given.calibrated must be True or False"),
        ({"threads": 0}, "Given.threads must be a whole number from 1"),
    ],
)
def test_attributes_that_cannot_be_sent_are_told(values: dict[str, Any], sentence: str) -> None:
    """Before anybody asks /v1/info."""
    reward = Given()
    vars(reward).update(values)
    with pytest.raises(RewardFault) as caught:
        check_attributes(reward)
    assert sentence in str(caught.value)


class OtherArguments(Given):
    def score(self, images: Any) -> Any:  # type: ignore[override]
        return Scores([0.0])


class NoGolden(Reward):
    name = "no-golden"

    def score(self, **_: Any) -> Scores:
        return Scores([])


def test_a_class_that_cannot_be_asked_is_told_at_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another signature, a method that is missing, a module that does not even import."""
    with pytest.raises(ConfigurationError, match=r"must take score\(self, \*, prompt, images, metadata\)"):
        import_reward(f"{__name__}:OtherArguments")
    with pytest.raises(ConfigurationError, match="it must define golden"):
        import_reward(f"{__name__}:NoGolden")
    (tmp_path / "broken_reward_module.py").write_text("class Broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="broken_reward_module cannot be imported: SyntaxError"):
        import_reward("broken_reward_module:Broken")


def test_a_reason_stays_a_reason() -> None:
    """What is right is sent as it was: parts, tiers, reasons."""
    reason = ItemError(code="x", message="y")
    scores = Scores([None, 2.0], errors={0: reason}, tiers=[None, 1], sub_scores=[None, {"a": np.float32(1)}])
    first, second = rank_items(["a", "b"], scores)
    assert (first.error, first.tier, second.tier, second.sub_scores) == (reason, None, 1, {"a": 1.0})


class Eager(Reward):
    """Scores by how far the training has come; outside one, 0."""

    name = "eager"
    wants = ("progress",)

    def score(
        self,
        *,
        prompt: str,
        images: Sequence[Pixels],
        metadata: Mapping[str, JsonValue] | None,
        progress: float | None,
    ) -> Scores:
        return Scores([progress or 0.0] * len(images))

    def golden(self) -> Golden:
        return Golden("", np.zeros((4, 4, 3), np.uint8), 0.0)


class Forgetful(Given):
    """Wants what its `score` does not take."""

    wants = ("progress",)


@pytest.mark.anyio
async def test_a_reward_that_wants_progress_gets_it(serve: Serve) -> None:
    """It says so in /v1/info; a request without progress scores too, and one that is no share is refused by name."""
    async with serve(reward=f"{__name__}:Eager") as client:
        assert (await client.get("/v1/info")).json()["wants"] == ["progress"]
        for progress, score in (({"progress": 0.5}, 0.5), ({}, 0.0)):
            answer = await client.post("/v1/rank", json=inputs.rank_request(2, **progress))
            assert [each["score"] for each in answer.json()["results"]] == [score, score]
        for wrong in (1.5, -0.1, "0.5", True):
            refused = await client.post("/v1/rank", json=inputs.rank_request(2, progress=wrong))
            assert refused.status_code == 422
            assert [each["field"] for each in refused.json()["errors"]] == ["progress"]


def test_a_reward_that_wants_what_it_does_not_take_is_told() -> None:
    with pytest.raises(
        ConfigurationError, match=r"score must take score\(self, \*, prompt, images, metadata, progress\)"
    ):
        import_reward(f"{__name__}:Forgetful")
