"""CeleryRanker: groups of candidates -> Redis and Celery -> ranking endpoints -> rankings, as they come. No torch.

submit() stores a group's images once and sends a message per reward to that reward's own queue; a rank lane
(rank_task.py) asks the endpoint and pushes a small answer to this run's list, on which collect() blocks.

The ranker alone schedules. It knows what is unanswered, so whatever is lost is asked again: a message (Redis was
restarted), a lane (kill -9; its claim runs out), the images (their time was up). A pending ranking (202) and a
retryable failure are asked again when due, until the deadline, by new short tasks. A question's key is a hash of all
that is asked: a repeat, also by a resumed job, gets the first answer, and no answer can be taken for another's.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dipole.broker.candidates import CandidateStore
from dipole.broker.connection import celery_app, connect
from dipole.broker.rankings import CLAIM_TTL_S, LANE_IDLE_S, RANK_TASK, Board, Run, queue_name
from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole_trainer.ranking.groups import Group, RankedGroup, RewardResult
from dipole_trainer.ranking.in_flight import InFlight, OnRanked, failed, settle
from dipole_trainer.spec import RewardSpec

log = structlog.get_logger()
T = TypeVar("T")

RESEND_S = 10.0  # silence after which a question that no lane works on is asked again; doubles each time
MAX_PAUSE_S = 60.0  # longest wait between two tasks of one question


@dataclass(frozen=True)
class ResolvedReward:
    """A job's reward with the endpoint it means, which has been checked against the allow-list."""

    spec: RewardSpec
    endpoint: Endpoint


@dataclass
class _Question:
    """One reward's ranking of one group, until it is answered. Times are of the monotonic clock."""

    group: Group
    reward: str
    candidates: str
    key: str
    deadline: float
    due: float = 0.0
    scheduled: bool = True  # due means "ask", otherwise "see whether a lane works on it"
    sent: int = 0
    failures: int = 0
    location: str | None = None
    reason: str = field(default="no answer from a rank worker")


class CeleryRanker:
    """groups.Ranker over Celery and Redis. One per run of a job; used by one thread. close() it in the end."""

    def __init__(
        self,
        settings: PlatformSettings,
        job_id: str,
        rewards: Sequence[ResolvedReward],
        on_ranked: OnRanked | None = None,
        *,
        resend_s: float = RESEND_S,
    ) -> None:
        self._job_id = job_id
        self._rewards = {reward.spec.name: reward for reward in rewards}
        self._flight = InFlight([reward.spec for reward in rewards], on_ranked)
        self._resend_s = resend_s
        self._app = celery_app(settings.redis_url)
        self._redis = connect(settings.redis_url)
        self._store = CandidateStore(self._redis, settings.candidate_ttl_s)
        self._board = Board(self._redis, settings.candidate_ttl_s)
        self._questions: dict[tuple[str, str], _Question] = {}
        self._stored: dict[str, str] = {}  # group id -> reference of its images
        self._run_id = uuid.uuid4().hex
        self._refresh_at = 0.0
        self._refresh_s = min(settings.candidate_ttl_s, LANE_IDLE_S) / 4

    # The seam: groups.Ranker

    def submit(self, group: Group) -> None:
        """Store the images once, send a message per reward. Returns though Redis is away: collect() sends again."""
        now = time.monotonic()
        reference = CandidateStore.reference(group.images)
        self._flight.add(group, now)
        self._stored[group.id] = reference
        self._refresh(now)
        stored = self._try(lambda: self._store.put(reference, group.images))
        for name, reward in self._rewards.items():
            question = _Question(
                group=group,
                reward=name,
                candidates=reference,
                key=self._key(group, reward, reference),
                deadline=now + reward.spec.timeout_s,
                due=now + 1,
            )
            self._questions[group.id, name] = question
            if stored is not None:
                self._send(question, now)

    def collect(self, timeout_s: float) -> RankedGroup | None:
        """The next finished group. Every call asks again what is due: a trainer that computes only looks in."""
        until = time.monotonic() + timeout_s
        self._receive(0)
        while True:
            now = time.monotonic()
            self._refresh(now)
            self._ask_again(now)
            if (ranked := self._flight.pop()) is not None:
                self._drop([ranked.group_id])
                return ranked
            if self._expire(now):
                continue
            if now >= until:
                return None
            dues = [min(question.due, question.deadline) for question in self._questions.values()]
            self._receive(min([until, *dues]) - now)

    def cancel(self) -> None:
        """Forget every group in flight: queued messages become void, late answers go nowhere."""
        self._flight.clear()
        self._questions.clear()
        self._drop(list(self._stored))
        old, self._run_id, self._refresh_at = self._run_id, uuid.uuid4().hex, 0.0
        self._try(lambda: self._board.close_run(old))

    def close(self) -> None:
        self.cancel()
        self._app.close()
        self._redis.close()

    # Asking

    def _key(self, group: Group, reward: ResolvedReward, reference: str) -> str:
        asked = [reward.spec.name, *reward.endpoint.asked()]
        substance = [self._job_id, group.id, *asked, reference, group.prompt, group.metadata]
        return hashlib.sha256(json.dumps(substance, sort_keys=True, default=dict).encode()).hexdigest()

    def _send(self, question: _Question, now: float) -> None:
        """Put one task on the reward's queue; the next look at it is after a silence that doubles each time."""
        question.sent += 1
        pause = min(self._resend_s * 2 ** (question.sent - 1), max(MAX_PAUSE_S, self._resend_s))
        message = {
            "run": self._run_id,
            "group": question.group.id,
            "reward": question.reward,
            "key": question.key,
            "candidates": question.candidates,
            "count": len(question.group.images),
            "prompt": question.group.prompt,
            "metadata": None if question.group.metadata is None else dict(question.group.metadata),
            "location": question.location,
        }
        sent = self._try(
            lambda: self._app.send_task(
                RANK_TASK,
                kwargs={**message, "deadline": self._board.now() + question.deadline - now},
                queue=queue_name(question.reward),
                task_id=f"{question.key[:32]}.{question.sent}",
                headers={"request_id": question.key[:32], "job_id": self._job_id},
                retry=False,
            )
        )
        question.due, question.scheduled = (now + 1, True) if sent is None else (now + pause, False)

    def _ask_again(self, now: float) -> None:
        """Send what is due, and what has been silent though no lane claims it."""
        due = [question for question in self._questions.values() if question.due <= now]
        silent = [question.key for question in due if not question.scheduled]
        working = self._try(lambda: self._board.claimed(silent))
        if silent:  # perhaps Redis was restarted: then rank workers know neither this run nor its lanes
            self._refresh(now, force=True)
        for question in due:
            if working is None:
                question.due = now + 1
            elif not question.scheduled and question.key in working:
                question.due = now + min(CLAIM_TTL_S, self._resend_s)
            else:
                if not question.scheduled:
                    log.info("rank_resend", group=question.group.id, reward=question.reward, sent=question.sent)
                self._send(question, now)

    # Answers

    def _receive(self, wait_s: float) -> None:
        """Take every answer there is, waiting at most `wait_s` for the first."""
        started = time.monotonic()
        answers = self._try(lambda: self._board.answers(self._run_id, wait_s))
        if answers is None:  # Redis is away: neither spin nor give up before the deadlines do
            time.sleep(max(0.0, min(0.5, wait_s) - (time.monotonic() - started)))
        for answer in answers or []:
            self._take(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        at = (str(answer["group"]), str(answer["reward"]))
        question = self._questions.get(at)
        if question is None or answer["key"] != question.key:
            return  # a duplicate, or of a group that nobody waits for
        now = time.monotonic()
        if answer["status"] == "pending":
            question.location = answer.get("location") or question.location
            question.reason = "pending at the endpoint"
            question.due, question.scheduled = now + min(max(answer["retry_after"], 0.2), MAX_PAUSE_S), True
        elif answer["status"] == "claimed":  # by a lane that answers another run of ours, or a repeated delivery
            question.due, question.scheduled = now + CLAIM_TTL_S / 4, False
        elif answer["status"] == "missing":
            question.due, question.scheduled = now, True
            if self._try(lambda: self._store.put(question.candidates, question.group.images)) is None:
                question.due = now + 1
        elif answer["status"] == "failed" and answer["retryable"]:
            question.failures += 1
            question.reason = f"{answer['code']}: {answer['message']}"
            if answer["http_status"] == 404:  # a restart forgot the pending ranking: post the group anew
                question.location = None
            backoff = min(10.0, 0.5 * 2 ** min(question.failures, 5)) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
            pause = min(max(backoff, answer["retry_after"] or 0.0), MAX_PAUSE_S)
            question.due, question.scheduled = now + pause, True
            log.warning("rank_retry", group=at[0], reward=at[1], reason=question.reason, pause_s=round(pause, 1))
        else:
            del self._questions[at]
            self._flight.put(*at, self._result(question, answer))

    def _result(self, question: _Question, answer: dict[str, Any]) -> RewardResult:
        count = len(question.group.images)
        if answer["status"] == "failed":
            log.warning("rank_failed", group=question.group.id, reward=question.reward, code=answer["code"])
            return failed(count, f"{answer['code']}: {answer['message']}", seconds=answer["seconds"])
        errors = {int(index): why for index, why in answer["errors"].items()}
        result = settle(self._rewards[question.reward].spec, count, answer["scores"], errors)
        return replace(
            result,
            sub_scores={name: tuple(values) for name, values in answer["sub_scores"].items()},
            ordinal=bool(answer.get("ordinal")),
            model=answer["model"],
            model_revision=answer["model_revision"],
            recipe_version=answer["recipe_version"],
            seconds=answer["seconds"],
        )

    # Small steps

    def _expire(self, now: float) -> bool:
        """Settle the questions past their deadline, each with the last thing heard; whether there were any."""
        late = {at: question.reason for at, question in self._questions.items() if question.deadline <= now}
        for at in late:
            del self._questions[at]
        self._flight.expire(now, late)
        return bool(late)

    def _drop(self, group_ids: Sequence[str]) -> None:
        """Free the images of groups that nobody waits for; should another group have the same, they are sent again."""
        gone = [self._stored.pop(group_id) for group_id in group_ids]
        self._try(lambda: self._store.drop([reference for reference in gone if reference not in self._stored.values()]))

    def _refresh(self, now: float, *, force: bool = False) -> None:
        """Keep the run's record, with endpoints and keys, alive while the run is."""
        if now < self._refresh_at and not force:
            return
        run: Run = {"rewards": {name: reward.endpoint.record() for name, reward in self._rewards.items()}}
        done = self._try(lambda: self._board.open_run(self._run_id, run))
        self._refresh_at = now + (self._refresh_s if done else 1)

    def _try(self, call: Callable[[], T]) -> T | None:
        """None when Redis cannot be reached; the deadlines decide how long that is survived."""
        try:
            return call()
        except (RedisError, OperationalError) as error:
            for question in self._questions.values():
                question.reason = f"transport: Redis does not answer ({type(error).__name__})"
            log.warning("redis_unreachable", error=str(error))
            return None
