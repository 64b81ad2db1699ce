"""One short task: load a group's candidates, ask one endpoint, push the answer to the run that asked.

Repeats are harmless. An answer already known is pushed again; a question another thread works on is not asked twice;
what is past its deadline, or of a closed run, is dropped. Nothing is retried or waited for here, so that an endpoint
that fails holds no thread: the ranker that asked decides what comes next (ranking/celery_ranker.py).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, overload

import structlog
from celery import Celery, Task
from redis.exceptions import RedisError

from dipole import tracing
from dipole.broker.candidates import CandidateStore, MissingCandidates
from dipole.broker.connection import connect_redis
from dipole.broker.endpoint_statistics import EndpointRecord
from dipole.broker.messages import RankAnswer, RankMessage, failure_answer, ranking_answer
from dipole.broker.rankings import CLAIM_TTL_S, RANK_TASK, TaskCoordination, queue_name
from dipole.broker.references import Candidates
from dipole.broker.shared_memory import open_shared_memory
from dipole.client import tls
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint, check_reward_url
from dipole.client.rank_client import LatentsNotTaken, RankClient, StillPending
from dipole.errors import ConfigurationError, InvalidInput
from dipole.settings import PlatformSettings
from dipole.vault import Vault

log = structlog.get_logger()

MAX_CLIENTS = 64
# Of one exchange, however long its ranking may take: an endpoint that hangs must not hold a lane's thread for hours.
# One that needs longer answers 202.
ANSWER_TIMEOUT_S = 600.0
POLL_TIMEOUT_S = 30.0

OnRequest = Callable[[str, str, float, str | None], None]
"""Is told of each request: reward, outcome, seconds, and the endpoint's circuit, where it was asked."""


class Lane:
    """What the threads of one lane share: connections, clients with their circuits, and the claims being worked on."""

    def __init__(
        self, settings: PlatformSettings, vault: Vault | None = None, on_request: OnRequest | None = None
    ) -> None:
        client = connect_redis(settings.redis_url)
        self._vault = vault or Vault.from_environment()
        self._reward_hosts = settings.reward_hosts
        self._store = CandidateStore(client, settings.candidate_ttl_s, open_shared_memory(settings))
        self._redis = client
        self._coordination = TaskCoordination(client, settings.candidate_ttl_s)
        self._record = EndpointRecord(client)
        self._on_request = on_request
        self._tls_dir = settings.tls_dir
        self._clients: dict[tuple[Any, ...], RankClient] = {}
        self._claims: set[str] = set()
        self._asking: Counter[str] = Counter()  # requests under way, by reward
        self._lock = threading.Lock()
        threading.Thread(target=self._renew_claims, name="claims", daemon=True).start()

    def answer_message(self, message: RankMessage) -> None:
        """Answer one message, or drop it when nobody waits for an answer any more."""
        run = self._coordination.get_run(message["run"])
        remaining = message["deadline"] - self._coordination.server_time()
        if run is None or remaining <= 0:
            log.info("rank_dropped", reward=message["reward"], why="run closed" if run is None else "past its deadline")
            return
        if message.get("withdraw"):
            self._withdraw_ranking(run["rewards"][message["reward"]], message)
            return
        key = message["key"]
        answer = cast("RankAnswer | None", self._coordination.kept_answer(key))
        if answer is None and not self._claim_task(key):
            answer = {"status": "claimed"}
        if answer is None:
            started = time.monotonic()
            try:
                with self._sleeping_afterwards(run["rewards"][message["reward"]], message["reward"]):
                    answer = self._ask_endpoint(run["rewards"][message["reward"]], message, remaining)
                    answer["seconds"] = time.monotonic() - started
                self._record_request(run["rewards"][message["reward"]], message["reward"], answer)
                if answer["status"] == "completed" and any(score is not None for score in answer["scores"]):
                    self._coordination.keep_answer(key, answer)
            finally:
                self._release_claim(key)
        named = {"group": message["group"], "reward": message["reward"], "key": key}
        self._coordination.push_answer(message["run"], {**answer, **named})
        tracing.set_attributes(outcome=answer["status"], code=answer.get("code"))
        log.info("rank_answered", group=message["group"], reward=message["reward"], status=answer["status"])

    def _ask_endpoint(self, record: Mapping[str, Any], message: RankMessage, remaining: float) -> RankAnswer:
        try:
            client = self._client_of(self._endpoint_of(record))
            ranking = client.rank(
                message["prompt"],
                LazyCandidates(self._store, message["candidates"], message["count"]),
                message["metadata"],
                progress=message.get("progress"),
                vae=message.get("vae"),
                stored=self._store.find_in_memory(message["candidates"]) if message["location"] is None else None,
                idempotency_key=message["key"],
                deadline_s=min(remaining, ANSWER_TIMEOUT_S if message["location"] is None else POLL_TIMEOUT_S),
                location=message["location"],
                poll=False,
                retry=False,
            )
            return ranking_answer(ranking, client.fetch_info(deadline_s=min(remaining, POLL_TIMEOUT_S)))
        except StillPending as pending:
            return {"status": "pending", "location": pending.location, "retry_after": pending.retry_after}
        except MissingCandidates as error:
            return {"status": "missing", "message": str(error)}
        except LatentsNotTaken as error:
            return {"status": "as_images", "message": str(error), "is_mismatch": error.is_mismatch}
        except EndpointError as error:
            return failure_answer(
                error.code,
                str(error),
                retryable=error.retryable,
                retry_after=error.retry_after,
                http_status=error.http_status,
            )
        except ConfigurationError as error:
            # certificates or a key that are not here: put there, they will be found
            return failure_answer("configuration", str(error), retryable=True)
        except InvalidInput as error:
            # a trainer of another version, or somebody else with access to Redis, describes what this one does not ask
            return failure_answer("configuration", str(error), retryable=False)
        except Exception as error:
            # a bug of ours: the run shall know, not wait
            log.exception("rank_crashed")
            why = f"{type(error).__name__} in the rank worker, whose log says more"
            return failure_answer("internal", why, retryable=False)

    @contextmanager
    def _sleeping_afterwards(self, record: Mapping[str, Any], reward: str) -> Iterator[None]:
        """An endpoint that shares its GPU with the trainer sleeps once nothing is to be ranked, and before the trainer
        hears the answer: it takes the memory then. A courtesy: whatever prevents it is told in the log alone.
        """
        with self._lock:
            self._asking[reward] += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking[reward] -= 1
                is_last = not self._asking[reward]
            if is_last and "colocated" in record.get("options", ()):
                self._put_to_sleep(record, reward)

    def _put_to_sleep(self, record: Mapping[str, Any], reward: str) -> None:
        try:
            endpoint = self._endpoint_of(record)
            if endpoint.is_colocated and not self._redis.llen(queue_name(reward)):
                self._client_of(endpoint).sleep_weights()
        except (EndpointError, ConfigurationError, InvalidInput, RedisError) as error:
            log.warning("reward_not_asleep", reward=reward, error=str(error))

    def _withdraw_ranking(self, record: Mapping[str, Any], message: RankMessage) -> None:
        """A courtesy: whatever prevents it, the endpoint's own deadline ends what is pending there."""
        try:
            if message["location"] is not None:
                self._client_of(self._endpoint_of(record)).withdraw_ranking(message["location"])
                log.info("rank_withdrawn", group=message["group"], reward=message["reward"])
        except (ConfigurationError, InvalidInput) as error:
            log.warning("rank_not_withdrawn", reward=message["reward"], error=str(error))

    def _record_request(self, record: Mapping[str, Any], reward: str, answer: RankAnswer) -> None:
        """Keep how the endpoint answered; what never reached it says nothing of it."""
        outcome = answer.get("code", "failed") if answer["status"] == "failed" else answer["status"]
        is_endpoints = outcome not in ("missing", "as_images", "configuration", "internal")
        circuit = self._client_of(self._endpoint_of(record)).breaker.state if is_endpoints else None
        seconds = answer.get("seconds", 0.0)
        if self._on_request is not None:
            self._on_request(reward, outcome, seconds, circuit)
        if circuit is None:
            return
        self._record.add_request(
            reward,
            {
                "at": self._coordination.server_time(),
                "seconds": round(seconds, 4),
                "outcome": outcome,
                "circuit": circuit,
                "revision": answer.get("model_revision", ""),
            },
        )

    def _endpoint_of(self, record: Mapping[str, Any]) -> Endpoint:
        """The endpoint that a run's record means. Redis is believed no more than a caller is: its host must be allowed.

        Raises ConfigurationError when its key does not open, InvalidInput for what may not be asked.
        """
        key = record.get("key")
        try:
            endpoint = Endpoint.from_values({**record, "key": self._vault.open(key) if key else None})
        except ConfigurationError as error:
            raise ConfigurationError(f"in the rank worker, {error}") from error
        url = check_reward_url(endpoint.url, self._reward_hosts, field="in the rank worker, url")
        return endpoint.model_copy(update={"url": url})

    def _client_of(self, endpoint: Endpoint) -> RankClient:
        """The endpoint's client, with its circuit; a new one when its certificates have been renewed."""
        at = (endpoint.model_dump_json(), endpoint.key, tls.certificates_stamp(endpoint.tls, self._tls_dir))
        with self._lock:
            if at not in self._clients:
                while len(self._clients) >= MAX_CLIENTS:
                    self._clients.pop(next(iter(self._clients)))
                self._clients[at] = RankClient(endpoint, tls_dir=self._tls_dir)
            return self._clients[at]

    # Claims

    def _claim_task(self, key: str) -> bool:
        if not self._coordination.claim_task(key):
            return False
        with self._lock:
            self._claims.add(key)
        return True

    def _release_claim(self, key: str) -> None:
        with self._lock:
            self._claims.discard(key)
        self._coordination.release_claim(key)

    def _renew_claims(self) -> None:
        while True:
            time.sleep(CLAIM_TTL_S / 4)
            with self._lock:
                keys = list(self._claims)
            try:
                if keys:
                    self._coordination.renew_claims(keys)
            except Exception as error:
                # Redis is away: the claims run out and are asked again, which is harmless
                log.warning("claims_not_renewed", error=str(error))


class LazyCandidates(Sequence[Candidates]):
    """A group's images or latents, loaded when first looked at (a pending ranking needs none). Raises
    MissingCandidates.
    """

    def __init__(self, store: CandidateStore, reference: str, count: int) -> None:
        self._store, self._reference, self._count = store, reference, count
        self._images: Candidates | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Candidates: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidates]: ...
    def __getitem__(self, index: int | slice) -> Candidates | Sequence[Candidates]:
        if self._images is None:
            self._images = self._store.get(self._reference)
        return self._images[index] if isinstance(index, int) else list(self._images[index])


def register_rank_task(app: Celery, lane: Lane) -> None:
    """Give the app its one task."""

    @app.task(name=RANK_TASK, bind=True)  # type: ignore[untyped-decorator]
    def rank_group(self: Task, **message: Any) -> None:
        headers = self.request.headers or {}
        names = {name: str(headers[name]) for name in ("request_id", "job_id") if name in headers}
        with (
            structlog.contextvars.bound_contextvars(**names),
            tracing.trace_span(
                "rank", kind="consumer", parent=headers.get(tracing.TRACEPARENT), reward=message["reward"], **names
            ),
        ):
            lane.answer_message(cast(RankMessage, message))
