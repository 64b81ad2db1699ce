"""Groups that wait together share a forward, and nobody can tell by the answers; with real threads, and over HTTP."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue
from torch import Tensor

from dipole.client.rank_client import RankClient
from dipole.errors import ConfigurationError, Overloaded
from dipole.protocol.schemas import ItemError
from dipole.settings import load_settings
from dipole_rewards import tiny_weights
from dipole_rewards.reward import BatchedReward, CandidateImages, Golden, Pixels, Reward, Scores
from dipole_rewards.rewards.clip import Clip
from dipole_rewards.scoring.batching import Batcher, QueueBounds
from dipole_rewards.scoring.weight_residence import WeightResidence
from dipole_rewards.settings import RewardSettings, WeightSettings

from ..conftest import Process

TIMEOUT_S = 20
FOREVER_S = 3600.0  # nobody waits so long: what a test sees happened for another reason


def group(prompt: str, *values: int) -> CandidateImages:
    return CandidateImages(prompt, [np.full((2, 2, 3), value, np.uint8) for value in values], {"of": prompt})


class Plain(Reward):
    """Scores an image by its value and its prompt's length; a prompt may ask for something else."""

    name = "plain"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        assert metadata == {"of": prompt}
        values = [float(image[0, 0, 0]) + len(prompt) / 100 for image in images]
        if prompt == "bad":
            raise ZeroDivisionError
        return Scores(
            values[1:] if prompt == "short" else [None if value < 1 else value for value in values],
            sub_scores=[{"value": value} for value in values],
            errors={k: ItemError(code="dark", message=prompt) for k, value in enumerate(values) if value < 1},
            usage={"prompt_tokens": len(prompt)},
        )

    def golden(self) -> Golden:
        raise NotImplementedError


class Merging(Plain):
    """Keeps the groups of every call, and holds the first call until the test lets it go."""

    name = "merging"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.running, self.go_on = threading.Event(), threading.Event()

    def score(self, **asked: Any) -> Scores:
        self.calls.append([asked["prompt"]])
        return self._held([CandidateImages(**asked)])[0]

    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        self.calls.append([one.prompt for one in groups])
        return self.broken(self._held(groups))

    def broken(self, answers: list[Scores]) -> list[Scores]:
        return answers

    def _held(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        self.running.set()
        assert self.go_on.wait(TIMEOUT_S)
        return [super(Merging, self).score(prompt=one.prompt, images=one.images, metadata=one.metadata)
                for one in groups]  # fmt: skip


class OneLess(Merging):
    """Loses a group of every merge."""

    def broken(self, answers: list[Scores]) -> list[Scores]:
        return answers[1:]


class Split(Merging):
    """Cuts the scores of every merge in the wrong place."""

    def broken(self, answers: list[Scores]) -> list[Scores]:
        first, *others = answers
        return [replace(first, scores=[*first.scores, 0.5, 0.5]), *others]


Forwards = list[tuple[float, list[CandidateImages]]]


@contextmanager
def batching(reward: Reward, **bounds: Any) -> Iterator[tuple[Batcher, Forwards]]:
    """A batcher, and (seconds, groups) of every forward that it told of."""
    forwards: Forwards = []
    batcher = Batcher(
        reward,
        QueueBounds(**{"max_groups": 64, "max_bytes": 2**20, "batch_images": 8, "wait_s": 0.0, **bounds}),
        observe=lambda seconds, groups: forwards.append((seconds, list(groups))),
        weights=WeightResidence((), "cpu", timeout_s=1.0),
    )
    try:
        yield batcher, forwards
    finally:
        if isinstance(reward, Merging):
            reward.go_on.set()
        batcher.close()


def behind_a_running_one(batcher: Batcher, reward: Merging, groups: Sequence[CandidateImages]) -> list[Future[Scores]]:
    """These groups, submitted while the model is held by another: they wait together."""
    batcher.submit_group(group("first", 1))
    assert reward.running.wait(TIMEOUT_S)
    return [batcher.submit_group(one) for one in groups]


def prompts_of(forwards: Forwards) -> list[list[str]]:
    return [[one.prompt for one in groups] for _, groups in forwards]


def outcome(score: Callable[[], Scores]) -> Scores | str:
    try:
        return score()
    except Exception as error:
        return repr(error)


def alone(one: CandidateImages) -> Scores | str:
    return outcome(lambda: Plain().score(prompt=one.prompt, images=one.images, metadata=one.metadata))


prompts = st.sampled_from(["a", "bb", "bad", "short", "ccc"])
some_groups = st.lists(
    st.builds(lambda prompt, values: group(prompt, *values), prompts, st.lists(st.integers(0, 9), min_size=1)),
    min_size=1,
    max_size=20,
)


# ---- merging --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(some_groups, st.integers(1, 12), st.sampled_from([Merging, OneLess, Split]))
def test_what_is_answered_is_what_each_group_alone_is(
    groups: list[CandidateImages], batch_images: int, kind: type[Merging]
) -> None:
    """Scores, parts, errors and usage, exceptions and wrong counts too; also where every merge goes wrong.

    And every forward stays within its images or is of one group, and groups are first tried in the order they came.
    """
    reward = kind()
    with batching(reward, batch_images=batch_images) as (batcher, forwards):
        answers = behind_a_running_one(batcher, reward, groups)
        reward.go_on.set()
        assert [outcome(partial(answer.result, TIMEOUT_S)) for answer in answers] == [alone(one) for one in groups]
    for _, merged in forwards:
        assert len(merged) == 1 or sum(len(one.images) for one in merged) <= batch_images
    tried = dict.fromkeys(id(one) for _, merged in forwards[1:] for one in merged)
    assert list(tried) == [id(one) for one in groups]
    assert prompts_of(forwards) == reward.calls


def test_groups_that_wait_together_are_one_forward() -> None:
    """Behind a running forward three groups of two become one; the fourth does not fit, and comes next."""
    reward = Merging()
    with batching(reward, batch_images=7) as (batcher, _):
        answers = behind_a_running_one(batcher, reward, [group(name, 1, 2) for name in "abcd"])
        reward.go_on.set()
        answers[-1].result(TIMEOUT_S)
    assert reward.calls == [["first"], ["a", "b", "c"], ["d"]]


def test_a_group_is_not_overtaken_by_one_that_would_fit() -> None:
    """A large group behind a small one goes next, before another small one that would have fitted."""
    reward = Merging()
    with batching(reward, batch_images=4) as (batcher, _):
        waiting = [group("a", 1), group("large", 1, 2, 3, 4, 5), group("b", 1)]
        answers = behind_a_running_one(batcher, reward, waiting)
        reward.go_on.set()
        answers[-1].result(TIMEOUT_S)
    assert reward.calls == [["first"], ["a"], ["large"], ["b"]]


def test_one_bad_group_fails_alone() -> None:
    """The forward of three is repeated group by group: one error, two answers."""
    reward = Merging()
    with batching(reward) as (batcher, _):
        answers = behind_a_running_one(batcher, reward, [group(name, 1) for name in ("a", "bad", "b")])
        reward.go_on.set()
        assert [type(answer.exception(TIMEOUT_S)) for answer in answers] == [type(None), ZeroDivisionError, type(None)]
    assert reward.calls == [["first"], ["a", "bad", "b"], ["a"], ["bad"], ["b"]]


def test_a_reward_that_scores_one_group_is_never_asked_for_more() -> None:
    """Without a `score_groups` of its own nothing is merged, and nothing waits for company."""

    class Held(Plain):
        go_on = threading.Event()

        def score(self, **asked: Any) -> Scores:
            assert self.go_on.wait(TIMEOUT_S)
            return super().score(**asked)

    with batching(Held(), wait_s=FOREVER_S) as (batcher, forwards):
        answers = [batcher.submit_group(group(name, 1)) for name in "abc"]
        Held.go_on.set()
        for answer in answers:
            answer.result(TIMEOUT_S)
    assert prompts_of(forwards) == [["a"], ["b"], ["c"]]


def test_a_batched_reward_has_one_way_of_scoring() -> None:
    """`score` of a BatchedReward is its `score_groups` of that group."""

    class Lengths(BatchedReward):
        name = "lengths"

        def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
            return [Scores([float(len(one.prompt))] * len(one.images)) for one in groups]

        def golden(self) -> Golden:
            raise NotImplementedError

    assert Lengths().score(prompt="four", images=group("", 1, 2).images, metadata=None) == Scores([4.0, 4.0])


# ---- waiting --------------------------------------------------------------------------------------------------------


def test_a_small_group_waits_for_company_until_half_a_batch_is_there() -> None:
    """One image of eight waits; with the fourth the forward starts, long before the wait is over."""
    reward = Merging()
    reward.go_on.set()
    with batching(reward, wait_s=FOREVER_S) as (batcher, _):
        answers = [batcher.submit_group(group(name, 1)) for name in "abc"]
        assert batcher.queue_length == 3
        assert not reward.running.is_set()
        answers.append(batcher.submit_group(group("d", 1)))
        for answer in answers:
            answer.result(TIMEOUT_S)
    assert reward.calls == [["a", "b", "c", "d"]]


def test_a_group_that_is_a_batch_does_not_wait() -> None:
    """Half a batch's images, or more than a whole one's, are scored at once and alone."""
    reward = Merging()
    reward.go_on.set()
    with batching(reward, wait_s=FOREVER_S) as (batcher, _):
        for size in (4, 9):
            batcher.submit_group(group("full", *range(size))).result(TIMEOUT_S)
    assert reward.calls == [["full"], ["full"]]


def test_a_wait_ends_after_its_time() -> None:
    """A lone image is scored when it has waited for company that did not come, and not before."""
    reward = Merging()
    reward.go_on.set()
    with batching(reward, wait_s=0.2) as (batcher, _):
        began = time.monotonic()
        batcher.submit_group(group("a", 1)).result(TIMEOUT_S)
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("milliseconds", ["inf", "1e300"])
def test_a_wait_that_no_thread_can_keep_is_refused(milliseconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the reward's thread, and a ready service would answer nothing any more."""
    monkeypatch.setenv("DIPOLE_REWARD_BATCH_WAIT_MS", milliseconds)
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_BATCH_WAIT_MS"):
        load_settings(RewardSettings, reward="any:Reward")


def test_time_behind_a_running_forward_is_time_waited() -> None:
    """A group that has waited for the model as long as it may for company is scored as soon as the model is free."""
    reward, wait_s = Merging(), 3.0
    with batching(reward, wait_s=wait_s) as (batcher, _):
        batcher.submit_group(group("half a batch", 1, 2, 3, 4))
        assert reward.running.wait(TIMEOUT_S)
        late = batcher.submit_group(group("late", 1))
        time.sleep(wait_s)
        free = time.monotonic()
        reward.go_on.set()
        late.result(TIMEOUT_S)
        assert time.monotonic() - free < wait_s - 0.1


# ---- giving up, overload, closing -----------------------------------------------------------------------------------


def test_who_gives_up_is_never_scored_and_takes_no_place() -> None:
    """A cancelled group leaves the queue to others, its bytes too, and the forward to its neighbours."""
    reward = Merging()
    with batching(reward, max_groups=3, max_bytes=36) as (batcher, _):
        first, gone, last = behind_a_running_one(batcher, reward, [group(name, 1) for name in ("a", "gone", "b")])
        with pytest.raises(Overloaded):
            batcher.submit_group(group("c", 1))
        assert gone.cancel()
        instead = batcher.submit_group(group("c", 1))
        reward.go_on.set()
        for answer in (first, last, instead):
            answer.result(TIMEOUT_S)
    assert reward.calls == [["first"], ["a", "b", "c"]]


def test_a_running_forward_cannot_be_given_up() -> None:
    """Cancelling says so, for every group of the forward; all are answered, and the thread lives on."""
    reward = Merging()
    with batching(reward, batch_images=4, wait_s=FOREVER_S) as (batcher, _):
        answers = [batcher.submit_group(group(name, 1)) for name in "ab"]
        assert reward.running.wait(TIMEOUT_S)
        assert [answer.cancel() for answer in answers] == [False, False]
        reward.go_on.set()
        assert [answer.result(TIMEOUT_S).scores for answer in answers] == [[1.01], [1.01]]
        batcher.submit_group(group("c", 1, 2)).result(TIMEOUT_S)
    assert reward.calls == [["a", "b"], ["c"]]


def test_a_queue_of_groups_that_were_given_up_is_passed_over() -> None:
    """When everything that waited was cancelled, the model is asked for nothing, and goes on with what comes."""
    reward = Merging()
    with batching(reward) as (batcher, _):
        for answer in behind_a_running_one(batcher, reward, [group(name, 1) for name in "ab"]):
            assert answer.cancel()
        reward.go_on.set()
        batcher.submit_group(group("c", 1)).result(TIMEOUT_S)
    assert reward.calls == [["first"], ["c"]]


@pytest.mark.parametrize("bounds", [{"max_groups": 2}, {"max_bytes": 24}])
def test_past_its_bounds_the_caller_is_told_when_to_come_back(bounds: dict[str, int]) -> None:
    """Two groups of 12 bytes wait, the third is refused; an idle queue takes a group of any size."""
    reward = Merging()
    with batching(reward, **bounds) as (batcher, _):
        waiting = behind_a_running_one(batcher, reward, [group(name, 1) for name in "ab"])
        with pytest.raises(Overloaded, match="2 groups are waiting") as caught:
            batcher.submit_group(group("c", 1))
        assert caught.value.retry_after >= 1
        reward.go_on.set()
        for answer in waiting:
            answer.result(TIMEOUT_S)
        batcher.submit_group(group("large", *range(9))).result(TIMEOUT_S)


def test_retry_after_is_the_time_that_half_the_queue_takes() -> None:
    """By the moving average of what a group took, from a second on; merged groups share their forward's time."""
    reward = Merging()
    with batching(reward, max_groups=40, batch_images=4) as (batcher, forwards):
        done = behind_a_running_one(batcher, reward, [group(name, 1) for name in "abcd"])
        reward.go_on.set()
        for answer in done:
            answer.result(TIMEOUT_S)
        reward.go_on.clear()
        reward.running.clear()
        with pytest.raises(Overloaded) as caught:
            behind_a_running_one(batcher, reward, [group("x", 1)] * 41)
        assert prompts_of(forwards) == [["first"], list("abcd")]
        each = [seconds / len(groups) for seconds, groups in forwards]
        average = list(accumulate(each, lambda mean, new: mean + 0.2 * (new - mean), initial=1.0))[-1]
        assert math.isclose(caught.value.retry_after, 40 * average / 2)


def test_close_cancels_what_waits_and_lets_the_running_forward_end() -> None:
    """Whoever waits is told at once, the running group is answered, its thread ends, and nothing more is taken."""
    reward = Merging()
    with batching(reward) as (batcher, _):
        running = batcher.submit_group(group("first", 1))
        assert reward.running.wait(TIMEOUT_S)
        waiting = batcher.submit_group(group("a", 1))
        batcher.close()
        with pytest.raises(CancelledError):
            waiting.result(TIMEOUT_S)
        with pytest.raises(Overloaded, match="stopping"):
            batcher.submit_group(group("b", 1))
        reward.go_on.set()
        assert running.result(TIMEOUT_S).scores == [1.05]
    for thread in threading.enumerate():
        if thread.name.startswith("reward-merging"):
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
    assert reward.calls == [["first"]]


def test_a_reward_that_waits_for_others_scores_as_many_groups_at_a_time_as_it_says() -> None:
    """Three threads meet inside `score`, the fourth group waits until one of them is done."""

    class Judge(Plain):
        threads = 3
        meeting = threading.Barrier(4, timeout=TIMEOUT_S)
        inside, most = 0, 0
        count = threading.Lock()

        def score(self, **asked: Any) -> Scores:
            with self.count:
                Judge.inside += 1
                Judge.most = max(self.most, self.inside)
            self.meeting.wait()
            self.meeting.wait()
            with self.count:
                Judge.inside -= 1
            return super().score(**asked)

    with batching(Judge()) as (batcher, _):
        answers = [batcher.submit_group(group(name, 1)) for name in "abcdef"]
        for waiting in (3, 0):
            Judge.meeting.wait()  # three are inside, and this thread
            assert batcher.queue_length == waiting
            Judge.meeting.wait()
        assert [answer.result(TIMEOUT_S).scores for answer in answers] == [[1.01]] * 6
    assert Judge.most == 3


# ---- a real reward --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights.write_weights(tmp_path_factory.mktemp("clip"), "clip")


def pictures(count: int) -> list[Pixels]:
    return [np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8) for seed in range(count)]


def test_a_merged_forward_without_room_is_halved(folder: Path) -> None:
    """Six images of three groups, room for two: the same scores in pieces that fit, and no group by itself."""
    reward, sizes = Clip.from_settings(WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu"), []
    groups = [CandidateImages(prompt, pictures(6)[n : n + 2]) for n, prompt in enumerate(("red", "a blue one", "red"))]
    expected = [reward.score(prompt=one.prompt, images=one.images, metadata=None) for one in groups]
    roomy = reward.encoder.encode_images

    def cramped(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("no room")
        return roomy(pixels)

    reward.encoder.encode_images = cramped  # type: ignore[method-assign]
    with batching(reward, batch_images=12, wait_s=FOREVER_S) as (batcher, forwards):
        answers = [batcher.submit_group(one) for one in groups]
        scores = [answer.result(TIMEOUT_S).scores for answer in answers]
    assert scores == [pytest.approx(one.scores, abs=1e-5) for one in expected]
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert prompts_of(forwards) == [["red", "a blue one", "red"]]


@pytest.fixture
def served(folder: Path, serve_process: Process) -> Iterator[str]:
    """The URL of `dipole rewards serve` with the tiny clip, that waits long for half of 16 images."""
    own = {"WEIGHTS": str(folder), "DTYPE": "fp32", "BATCH_IMAGES": "16", "BATCH_WAIT_MS": "2000"}
    with serve_process("dipole_rewards.rewards.clip:Clip", **own) as url:
        yield url


def counted(url: str, metric: str) -> float:
    found = re.search(rf"^{metric} (\S+)$", httpx.get(f"{url}/metrics", trust_env=False).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_concurrent_requests_over_http_share_forwards(served: str, folder: Path) -> None:
    """Eight callers with an image each: fewer than eight forwards, and each gets the score that it gets alone."""
    reward = Clip.from_settings(WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu")
    asked = [(f"prompt {'x' * n}", image) for n, image in enumerate(pictures(8))]
    expected = [reward.score(prompt=prompt, images=[image], metadata=None).scores[0] for prompt, image in asked]

    def rank(one: tuple[str, Pixels]) -> float | None:
        with RankClient(served) as client:
            return client.rank(one[0], [one[1]], deadline_s=TIMEOUT_S).results[0].score

    with ThreadPoolExecutor(8) as callers:
        scores = list(callers.map(rank, asked))
    assert scores == pytest.approx(expected, abs=1e-5)
    forwards = counted(served, "dipole_reward_forward_seconds_count")
    assert 1 <= forwards < 8
    assert counted(served, "dipole_reward_forward_groups_sum") == 8
    assert counted(served, "dipole_reward_forward_images_sum") == 8
    assert counted(served, "dipole_reward_forward_images_count") == forwards
    assert counted(served, "dipole_reward_images_total") == 8
