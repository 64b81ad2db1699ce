"""A ranker in the trainer's own process, for tests, benchmarks and notebooks: no Redis, no HTTP, the same policies.

    ranker = InProcessRanker({"bright": lambda prompt, images, metadata: images.mean((1, 2, 3)).tolist()})

Scorers run in threads. `delays` adds seconds to a reward's answer, to stand for a slow endpoint.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog, RewardResult
from dipole_trainer.ranking.in_flight import GroupsInFlight, OnRanked, apply_policy, failed_result
from dipole_trainer.spec import RewardSpec

GroupMetadata = Mapping[str, JsonValue] | None
Scorer = Callable[[str, NDArray[np.uint8], GroupMetadata], Sequence[float | None] | RewardResult]


class InProcessRanker:
    """groups.Ranker over plain functions `(prompt, images (K, H, W, 3) uint8, metadata) -> K scores`.

    A scorer may return a RewardResult instead, with sub-scores; one that raises is a failed reward. Without `specs`,
    every scorer is a required reward of weight 1.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        specs: Sequence[RewardSpec] | None = None,
        *,
        delays: Mapping[str, float] | None = None,
        on_ranked: OnRanked | None = None,
        threads: int = 4,
    ) -> None:
        chosen = [RewardSpec(name=name) for name in scorers] if specs is None else list(specs)
        missing = [spec.name for spec in chosen if spec.name not in scorers]
        if missing:
            raise ValueError(f"no scorer for {', '.join(missing)}")
        self._scorers = scorers
        self._delays = delays or {}
        self._in_flight = GroupsInFlight(chosen, on_ranked)
        self._answers: queue.SimpleQueue[tuple[int, str, str, RewardResult]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rank")
        self._run = 0  # answers of cancelled runs carry an older number

    def takes_latents(self) -> bool:
        return False

    def submit(self, group: CandidateGroup) -> None:
        self._in_flight.add_group(group, time.monotonic())
        self._ask_rewards()

    def collect(self, timeout_s: float) -> RankedGroup | None:
        until = time.monotonic() + timeout_s
        while True:
            self._drain_answers()
            if (ranked := self._in_flight.pop_finished()) is not None:
                return ranked
            now = time.monotonic()
            self._in_flight.expire_overdue(now)
            self._ask_rewards()
            if (ranked := self._in_flight.pop_finished()) is not None or now >= until:
                return ranked
            due = min([until, *(deadline for _, _, deadline in self._in_flight.deadlines())])
            try:
                self._handle_answer(self._answers.get(timeout=max(due - now, 0.001)))
            except queue.Empty:
                continue

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        return {}

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        return self._in_flight.list_unanswered(time.monotonic())

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        self._in_flight.change_rewards(rewards)

    def cancel(self, *, withdraw: bool = False) -> None:
        self._run += 1
        self._in_flight.clear()

    def close(self) -> None:
        self.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _drain_answers(self) -> None:
        while not self._answers.empty():
            self._handle_answer(self._answers.get())

    def _handle_answer(self, answer: tuple[int, str, str, RewardResult]) -> None:
        run, group_id, name, result = answer
        if run == self._run:
            self._in_flight.put_result(group_id, name, result, time.monotonic())
            self._ask_rewards()

    def _ask_rewards(self) -> None:
        for question in self._in_flight.pop_questions():
            self._pool.submit(self._score_group, self._run, question.group, question.reward)

    def _score_group(self, run: int, group: CandidateGroup, name: str) -> None:
        started = time.monotonic()
        if delay := self._delays.get(name, 0.0):
            time.sleep(delay)
        count = len(group.images)
        try:
            answer = self._scorers[name](group.prompt, np.asarray(group.images), group.metadata)
            given = answer if isinstance(answer, RewardResult) else RewardResult(scores=tuple(answer))
            judged = apply_policy(self._in_flight.specs[name], count, given.scores)
            result = replace(judged, sub_scores=given.sub_scores, ordinal=given.ordinal, verified=given.verified)
        except Exception as error:
            # a scorer is a caller's function: whatever it raises is its answer
            result = failed_result(count, f"invalid_response: {type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        self._answers.put((run, group.id, name, replace(result, model=name, seconds=seconds)))
