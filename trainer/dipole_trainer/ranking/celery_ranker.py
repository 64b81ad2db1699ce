"""CeleryRanker: groups of candidates -> Redis and Celery -> ranking endpoints -> rankings, as they come. No torch.

submit() stores a group's images once, in this machine's memory where every lane can read it and in Redis otherwise,
and sends a message per reward to that reward's own queue; a rank lane (rank_worker/task.py) asks the endpoint and
pushes a small answer to this run's list, on which collect() blocks.

| who                   | waits for                                     | woken by                                  |
|-----------------------|-----------------------------------------------|-------------------------------------------|
| collect(), one thread | any answer to any of this run's requests      | a push to the run's list, or its timeout  |
| a request             | its answer; `next_send_at`, when to send anew | collect(), which resends what is due      |
| a lane                | messages on `rank.<reward>`                   | send_task; nothing is scheduled in Celery |

The ranker alone schedules. It knows what is unanswered, so whatever is lost is asked again: all of Redis (it was
restarted, which the run's missing record tells), a message, a lane (kill -9; its claim runs out), the images (their
time was up). Only a message that Redis took counts as sent. A pending ranking (202) and a
retryable failure are asked again when due, until the deadline, by new short tasks. What is sent of a group, latents or
images, is sent_candidates.py's. A request's key is a hash of all that is asked: a repeat, also by a resumed job, gets
the first answer, and no answer can be taken for another's.

Hundreds of rankings may be pending for hours: their images leave the store once the endpoint has them, the longer one
has taken the rarer it is looked at, and all of a reward's together are no more than MAX_POLLS_PER_S. What nobody waits
for any more (its deadline, a cancelled job) is withdrawn at the endpoint, so that no rater works for nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dipole import tracing
from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.messages import RankAnswer, RankMessage, RunRecord
from dipole.broker.queue_depth import SENT_AT_HEADER
from dipole.broker.rankings import CLAIM_TTL_S, RANK_TASK, TaskCoordination, queue_name
from dipole.broker.references import Candidates, make_reference
from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole.vault import Vault
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog, RewardResult
from dipole_trainer.ranking.in_flight import GroupsInFlight, OnRanked, apply_policy, failed_result
from dipole_trainer.ranking.score_cache import ScoreCache
from dipole_trainer.ranking.sent_candidates import CandidateForms, StoredCandidates
from dipole_trainer.ranking.withdrawable_rankings import WITHDRAW_TTL_S, WithdrawableRankings
from dipole_trainer.spec import RewardSpec

log = structlog.get_logger()
T = TypeVar("T")

RESEND_AFTER_S = 10.0  # silence after which a request that no lane works on is asked again; doubles each time
MAX_RESEND_PAUSE_S = 60.0  # longest wait between two tasks of one request
RUN_CHECK_INTERVAL_S = 1.0  # between looks whether Redis still has the run
MIN_POLL_PAUSE_S = 0.2
POLL_PAUSE_SHARE = 0.05  # of the time that a ranking has been pending: so much later than it could be is it learnt
MAX_POLLS_PER_S = 20.0  # of one reward's pending rankings, in all
MAX_SLIPS = 4  # of a required reward that answers with no numbers, about ten seconds
RATE_ANSWERS = 20  # last answers of pending rankings, by which their rate is told


@dataclass(frozen=True)
class ResolvedReward:
    """A job's reward with the endpoint it means, which has been checked against the allow-list."""

    spec: RewardSpec
    endpoint: Endpoint


# by an array's id, kept so that no other gets it: rewards share arrays, and hashing takes a while
References = dict[int, tuple[Candidates, str]]


@dataclass
class _Request:
    """One reward's ranking of one group, until it is answered. Times are of the monotonic clock."""

    group: CandidateGroup
    reward: str
    array: Candidates  # what is sent: images or latents
    candidates: str
    substance: str  # equal for equal candidates, and no others
    key: str
    deadline: float
    flaws: Mapping[int, str] = field(default_factory=dict)  # rows of `group` that turned out to have no image
    next_send_at: float = 0.0
    is_scheduled: bool = True  # due means "ask", otherwise "see whether a lane works on it"
    times_sent: int = 0
    failures: int = 0
    location: str | None = None
    accepted_at: float | None = None  # when its endpoint was first known to have it pending
    holds_candidates: bool = True  # in the store
    reason: str = field(default="no answer from a rank worker")

    @property
    def sends_latents(self) -> bool:
        return self.array.dtype == np.float16


def resend_pause_s(first_s: float, times_sent: int) -> float:
    """How long a request may stay silent before it is sent again. A slow ranking is polled thousands of times."""
    return min(first_s * 2.0 ** min(times_sent - 1, 16), max(MAX_RESEND_PAUSE_S, first_s))


def poll_pause_s(pending_s: float, pending: int, retry_after: float | None) -> float:
    """How long a ranking that has been pending so long, among so many of its reward's, is left alone."""
    pause = max(retry_after or 0.0, MIN_POLL_PAUSE_S, POLL_PAUSE_SHARE * pending_s, pending / MAX_POLLS_PER_S)
    return min(pause, MAX_RESEND_PAUSE_S)


class _AnswerRate:
    """How fast the rankings of a reward that were pending came."""

    def __init__(self, since: float) -> None:
        self._times = deque([since], maxlen=RATE_ANSWERS + 1)
        self.answered = 0

    def add_answer(self, now: float) -> None:
        self._times.append(now)
        self.answered += 1

    def per_minute(self) -> float | None:
        return 60 * (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-3) if self.answered else None


class CeleryRanker:
    """groups.Ranker over Celery and Redis. One per run of a job; used by one thread. close() it in the end."""

    def __init__(
        self,
        settings: PlatformSettings,
        job_id: str,
        rewards: Sequence[ResolvedReward],
        on_ranked: OnRanked | None = None,
        score_cache: ScoreCache | None = None,
        *,
        resend_s: float = RESEND_AFTER_S,
        vault: Vault | None = None,
    ) -> None:
        self._job_id = job_id
        self._rewards = {reward.spec.name: reward for reward in rewards}
        self._in_flight = GroupsInFlight([reward.spec for reward in rewards], on_ranked)
        self._score_cache = score_cache
        self._resend_s = resend_s
        self._app = create_celery_app(settings.redis_url)
        self._redis = connect_redis(settings.redis_url)
        self._coordination = TaskCoordination(self._redis, settings.candidate_ttl_s)
        self._forms = CandidateForms()
        self._stored = StoredCandidates(settings, self._redis, self._coordination)
        self._withdrawable = WithdrawableRankings(self._app, self._redis)
        self._requests: dict[tuple[str, str], _Request] = {}
        self._rates: dict[str, _AnswerRate] = {}  # of the rewards that have answered 202
        self._spans: dict[str, tracing.StartedSpan] = {}  # of the groups in flight, by id
        self._run_id = uuid.uuid4().hex
        self._run_record = _build_run_record(rewards, vault or Vault.from_environment())
        self._check_run_at = 0.0

    # The seam: groups.Ranker

    def takes_latents(self) -> bool:
        return self._forms.any_takes_latents(self._rewards)

    def submit(self, group: CandidateGroup) -> None:
        """Store the images once, send a message per reward. Returns though Redis is away: collect() sends again."""
        now = time.monotonic()
        self._in_flight.add_group(group, now)
        self._spans[group.id] = tracing.start_span("group", group=group.id, step=group.step)
        self._ensure_run(now)
        self._ask_rewards(now)

    def collect(self, timeout_s: float) -> RankedGroup | None:
        """The next finished group. Every call asks again what is due: a trainer that computes only looks in."""
        until = time.monotonic() + timeout_s
        self._receive_answers(0)
        while True:
            now = time.monotonic()
            self._ensure_run(now)
            self._ask_rewards(now)
            self._resend_due(now)
            self._if_redis_answers(self._stored.delete_unused)
            if (ranked := self._in_flight.pop_finished()) is not None:
                self._spans.pop(ranked.group_id, tracing.StartedSpan(None)).end()
                return ranked
            if self._expire_requests(now):
                continue
            if now >= until:
                return None
            dues = [min(request.next_send_at, request.deadline) for request in self._requests.values()]
            self._receive_answers(min([until, self._check_run_at, *dues]) - now)

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        now = time.monotonic()
        found = {}
        for name, rate in self._rates.items():
            waiting = {
                group_id: now - request.accepted_at
                for (group_id, reward), request in self._requests.items()
                if reward == name and request.accepted_at is not None
            }
            found[name] = RankingBacklog(waiting, rate.answered, rate.per_minute())
        return found

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        return self._in_flight.list_unanswered(time.monotonic())

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        self._in_flight.change_rewards(rewards)

    def cancel(self, *, withdraw: bool = False) -> None:
        """Queued messages become void, late answers go nowhere."""
        self._in_flight.clear()
        for span in self._spans.values():
            span.end(outcome="cancelled")
        self._spans.clear()
        for request in self._requests.values():
            self._release_candidates(request)
        self._requests.clear()
        self._if_redis_answers(self._stored.delete_unused)
        old, self._run_id, self._check_run_at = self._run_id, uuid.uuid4().hex, 0.0
        self._if_redis_answers(lambda: self._coordination.close_run(old))
        if withdraw:
            self._if_redis_answers(lambda: self._withdrawable.withdraw(self._job_id))

    def close(self) -> None:
        self.cancel()
        self._stored.close()
        self._app.close()
        self._redis.close()

    # Asking

    def _ask_rewards(self, now: float) -> None:
        """Send what is to be asked and was not yet, but for what is known."""
        references: References = {}
        # a known answer may bring questions to the rewards that are shown what it chose
        while questions := self._in_flight.pop_questions():
            for question in questions:
                deadline = question.asked_at + self._rewards[question.reward].spec.timeout_s
                self._ask_reward(question.group, question.reward, deadline, now, references)

    def _ask_reward(
        self, group: CandidateGroup, name: str, deadline: float, now: float, references: References
    ) -> None:
        """Ask one reward to rank a group, in the form that it takes, unless its answer is known."""
        array, flaws = self._forms.choose(group, name)
        if len(flaws) == len(group.images):
            failure = failed_result(len(group.images), next(iter(flaws.values())))
            self._in_flight.put_result(group.id, name, failure, now)
            return
        if id(array) not in references:
            references[id(array)] = array, make_reference(array)
        reference = references[id(array)][1]
        # equal latents of two VAEs are different images
        substance = f"{reference} of {group.vae}" if array is group.latents else reference
        request = _Request(
            group=group,
            reward=name,
            array=array,
            candidates=reference,
            substance=substance,
            key=self._idempotency_key(group, self._rewards[name], substance),
            deadline=deadline,
            flaws=flaws,
            next_send_at=now + 1,
        )
        if self._score_cache is not None:
            known = self._score_cache.find(name, self._rewards[name].endpoint, group, substance)
            if known is not None:
                self._in_flight.put_result(group.id, name, self._result_of(request, known), now, is_remembered=True)
                return
        self._requests[group.id, name] = request
        if not self._stored.hold(reference) or self._store_candidates(request):
            self._send_task(request, now)

    def _store_candidates(self, request: _Request, *, to_redis: bool = False) -> bool:
        """Whether they are where lanes find them."""

        def put() -> bool:
            self._stored.put(request.candidates, request.array, to_redis=to_redis)
            return True

        return self._if_redis_answers(put) is not None

    def _idempotency_key(self, group: CandidateGroup, reward: ResolvedReward, candidates: str) -> str:
        # not of its progress, which the group's id implies in a job: whoever wants none is asked the same as ever
        asked = [reward.spec.name, *reward.endpoint.answer_identity()]
        substance = [self._job_id, group.id, *asked, candidates, group.prompt, group.metadata]
        return hashlib.sha256(json.dumps(substance, sort_keys=True, default=dict).encode()).hexdigest()

    def _send_task(self, request: _Request, now: float) -> bool:
        """Put one task on the reward's queue; the next look at it is after a silence that doubles each time.

        False when Redis did not take it: it was not sent, and is tried again in a second.
        """
        number = request.times_sent + 1
        if not self._send_message(self._message_of(request, self._run_id), request, f"{number}", now):
            request.next_send_at, request.is_scheduled = now + 1, True
            return False
        pause_s = resend_pause_s(self._resend_s, number)
        request.times_sent, request.next_send_at, request.is_scheduled = number, now + pause_s, False
        return True

    def _withdraw(self, request: _Request, run: str) -> None:
        """Have its endpoint told that nobody waits for it. Once, and unheard: its endpoint has deadlines too."""
        message: RankMessage = {**self._message_of(request, run), "withdraw": True}
        self._send_message(message, request, "withdraw", time.monotonic())

    def _message_of(self, request: _Request, run: str) -> RankMessage:
        return {
            "run": run,
            "group": request.group.id,
            "reward": request.reward,
            "key": request.key,
            "candidates": request.candidates,
            "vae": request.group.vae if request.sends_latents else None,
            "count": len(request.array),
            "prompt": request.group.prompt,
            "metadata": None if request.group.metadata is None else dict(request.group.metadata),
            "progress": request.group.progress,
            "location": request.location,
            "deadline": 0.0,
        }

    def _send_message(self, message: RankMessage, request: _Request, number: str, now: float) -> bool:
        """Whether Redis took it."""

        def send() -> Any:
            sent_at = self._coordination.server_time()
            ids = {"request_id": request.key[:32], "job_id": self._job_id}
            message["deadline"] = sent_at + request.deadline - now
            return self._app.send_task(
                RANK_TASK,
                kwargs=message,
                queue=queue_name(request.reward),
                task_id=f"{request.key[:32]}.{number}",
                headers={**ids, SENT_AT_HEADER: sent_at, **self._trace_headers(request.group)},
                retry=False,
            )

        return self._if_redis_answers(send) is not None

    def _trace_headers(self, group: CandidateGroup) -> dict[str, str]:
        """Of its span; none when it is withdrawn after it was given up."""
        return self._spans[group.id].headers() if group.id in self._spans else {}

    def _resend_due(self, now: float) -> None:
        """Send what is due, and what has been silent though no lane claims it."""
        due = [request for request in self._requests.values() if request.next_send_at <= now]
        silent = [request.key for request in due if not request.is_scheduled]
        working = self._if_redis_answers(lambda: self._coordination.claimed_keys(silent))
        for request in due:
            if working is None:
                request.next_send_at = now + 1
            elif not request.is_scheduled and request.key in working:
                request.next_send_at = now + min(CLAIM_TTL_S, self._resend_s)
            else:
                if not request.is_scheduled:
                    log.info(
                        "rank_resend", group=request.group.id, reward=request.reward, sent=request.times_sent,
                        request_id=request.key[:32],
                    )  # fmt: skip
                # what one could not be sent for, the others need not try
                working = working if self._send_task(request, now) else None

    # Answers

    def _receive_answers(self, wait_s: float) -> None:
        """Take every answer there is, waiting at most `wait_s` for the first."""
        started = time.monotonic()
        answers = self._if_redis_answers(lambda: self._coordination.pop_answers(self._run_id, wait_s))
        # Redis is away: neither spin nor give up before the deadlines do
        if answers is None:
            time.sleep(max(0.0, min(0.5, wait_s) - (time.monotonic() - started)))
        for answer in answers or []:
            self._handle_answer(cast(RankAnswer, answer))

    def _handle_answer(self, answer: RankAnswer) -> None:
        at = (str(answer["group"]), str(answer["reward"]))
        request = self._requests.get(at)
        if request is None or answer["key"] != request.key:
            # a duplicate, or of a group that nobody waits for
            return
        now = time.monotonic()
        if answer["status"] == "pending":
            self._handle_pending(request, answer, now)
        elif answer["status"] == "claimed":
            # by a lane that answers another run of ours, or a repeated delivery
            request.next_send_at, request.is_scheduled = now + CLAIM_TTL_S / 4, False
        elif answer["status"] == "missing":
            request.next_send_at, request.is_scheduled = now, True
            # perhaps by a lane of another machine, whatever was found out before
            if not self._store_candidates(request, to_redis=True):
                request.next_send_at = now + 1
            if not request.holds_candidates:
                request.holds_candidates = True
                self._stored.hold(request.candidates)
        elif answer["status"] == "as_images":
            self._drop_request(at)
            self._turn_to_images(request, answer, now)
        elif answer["status"] == "failed" and (answer["retryable"] or self._may_be_a_slip(request, answer)):
            request.failures += 1
            request.reason = f"{answer['code']}: {answer['message']}"
            # a restart forgot the pending ranking: post the group anew
            if answer["http_status"] == 404:
                request.location = request.accepted_at = None
            backoff = min(10.0, 0.5 * 2 ** min(request.failures, 5)) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
            pause = min(max(backoff, answer["retry_after"] or 0.0), MAX_RESEND_PAUSE_S)
            request.next_send_at, request.is_scheduled = now + pause, True
            log.warning(
                "rank_retry", group=at[0], reward=at[1], reason=request.reason, pause_s=round(pause, 1),
                request_id=request.key[:32],
            )  # fmt: skip
        else:
            if request.accepted_at is not None:
                self._rates[request.reward].add_answer(now)
            self._drop_request(at)
            if self._score_cache is not None and answer["status"] == "completed":
                endpoint = self._rewards[request.reward].endpoint
                self._score_cache.keep(request.reward, endpoint, request.group, request.substance, answer)
            self._in_flight.put_result(*at, self._result_of(request, answer), now)

    def _may_be_a_slip(self, request: _Request, answer: RankAnswer) -> bool:
        """Whether a required reward that gave no number is asked once more. Without it the group is lost, and all the
        groups of a minute where an endpoint is out of order for so long.
        """
        is_required = self._rewards[request.reward].spec.required
        return answer["code"] == "not_finite" and is_required and request.failures < MAX_SLIPS

    def _turn_to_images(self, request: _Request, answer: RankAnswer, now: float) -> None:
        """Its endpoint takes no latents of this VAE: from now on the reward is sent images, unless it must not be."""
        group, name, why = request.group, request.reward, answer["message"]
        if group.latents_alone:
            fix = "serve it with DIPOLE_REWARD_VAE and the job's precision, or set candidates_as to auto"
            failure = failed_result(len(group.images), f"configuration: {why}, not those of this job: {fix}")
            self._in_flight.put_result(group.id, name, failure, now)
            return
        self._forms.turn_to_images(name, why, is_mismatch=answer["is_mismatch"])
        self._ask_reward(group, name, request.deadline, now, {})

    def _handle_pending(self, request: _Request, answer: RankAnswer, now: float) -> None:
        """Its endpoint has it, and needs no images from here any more."""
        request.location = answer.get("location") or request.location
        request.reason = "pending at the endpoint"
        self._rates.setdefault(request.reward, _AnswerRate(now))
        request.accepted_at = request.accepted_at or now
        pending = sum(each.reward == request.reward and each.location is not None for each in self._requests.values())
        pause = poll_pause_s(now - request.accepted_at, pending, answer["retry_after"])
        request.next_send_at, request.is_scheduled = now + pause, True
        self._release_candidates(request)
        message, endpoint = self._message_of(request, self._run_id), self._run_record["rewards"][request.reward]
        self._if_redis_answers(lambda: self._withdrawable.keep(self._job_id, message, endpoint))

    def _result_of(self, request: _Request, answer: RankAnswer) -> RewardResult:
        count = len(request.array)
        if answer["status"] == "failed":
            log.warning(
                "rank_failed", group=request.group.id, reward=request.reward, code=answer["code"],
                request_id=request.key[:32],
            )  # fmt: skip
            failure = failed_result(count, f"{answer['code']}: {answer['message']}", seconds=answer["seconds"])
            return failure.with_flaws(request.flaws)
        errors = {int(index): why for index, why in answer["errors"].items()}
        result = apply_policy(self._rewards[request.reward].spec, count, answer["scores"], errors)
        return replace(
            result,
            sub_scores={name: tuple(values) for name, values in answer["sub_scores"].items()},
            ordinal=bool(answer.get("ordinal")),
            model=answer["model"],
            model_revision=answer["model_revision"],
            recipe_version=answer["recipe_version"],
            verified=answer.get("verified"),
            seconds=answer["seconds"],
            seen_as="latents" if request.sends_latents else "images",
            images_because=self._forms.reason_for_images(request.reward),
        ).with_flaws(request.flaws)

    # Small steps

    def _expire_requests(self, now: float) -> bool:
        """Settle the requests past their deadline, each with the last thing heard; whether there were any."""
        late = {at: request for at, request in self._requests.items() if request.deadline <= now}
        pending = {at for at, request in late.items() if request.location is not None}
        for at, request in late.items():
            self._drop_request(at)
            if at in pending:
                self._withdraw(replace(request, deadline=now + WITHDRAW_TTL_S), self._run_id)
        self._in_flight.expire_overdue(now, {at: request.reason for at, request in late.items()}, pending)
        return bool(late)

    def _drop_request(self, at: tuple[str, str]) -> None:
        request = self._requests.pop(at)
        self._release_candidates(request)
        if request.accepted_at is not None:
            self._if_redis_answers(lambda: self._withdrawable.forget(self._job_id, request.key))

    def _release_candidates(self, request: _Request) -> None:
        """They need no room for its sake."""
        if request.holds_candidates:
            request.holds_candidates = False
            self._stored.release(request.candidates)

    def _ensure_run(self, now: float) -> None:
        """Keep the run's record, with endpoints and keys, alive while the run is.

        Where Redis has lost it, it has lost the messages too: whatever is unanswered is sent as if for the first time.
        """
        if now < self._check_run_at:
            return
        self._check_run_at = now + RUN_CHECK_INTERVAL_S
        self._if_redis_answers(self._stored.look_for_lanes)
        rewards = list(self._rewards)
        if self._if_redis_answers(lambda: self._coordination.renew_run(self._run_id, rewards)) is not False:
            return
        if self._if_redis_answers(lambda: self._coordination.open_run(self._run_id, self._run_record)):
            for request in self._requests.values():
                request.times_sent, request.next_send_at, request.is_scheduled = 0, now, True

    def _if_redis_answers(self, call: Callable[[], T]) -> T | None:
        """None when Redis cannot be reached or refuses; the deadlines decide how long that is survived."""
        try:
            return call()
        except (RedisError, OperationalError) as error:
            said = describe_redis_error(error)
            for request in self._requests.values():
                request.reason = f"transport: {said}"
            log.warning("redis_failed", error=said)
            return None


def _build_run_record(rewards: Sequence[ResolvedReward], vault: Vault) -> RunRecord:
    records = {reward.spec.name: reward.endpoint.to_record() for reward in rewards}
    for record in records.values():
        record["key"] = vault.seal(record["key"]) if record["key"] else None
    return {"rewards": records}
