"""One short task: load a group's candidates, ask one endpoint, push the answer to the run that asked.

Repeats are harmless. An answer already known is pushed again; a question another thread works on is not asked twice;
what is past its deadline, or of a closed run, is dropped. Nothing is retried or waited for here, so that an endpoint
that fails holds no thread: the ranker that asked decides what comes next (ranking.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import structlog
from celery import Celery, Task
from numpy.typing import NDArray

from dipole.broker.candidates import CandidateStore, MissingCandidates
from dipole.broker.connection import connect
from dipole.broker.rankings import CLAIM_TTL_S, RANK_TASK, Board
from dipole.client import tls
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient, StillPending
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.schemas import Ranking
from dipole.settings import PlatformSettings

log = structlog.get_logger()

MAX_CLIENTS = 64


class Lane:
    """What the threads of one lane share: connections, clients with their circuits, and the claims being worked on."""

    def __init__(self, settings: PlatformSettings) -> None:
        client = connect(settings.redis_url)
        self._store = CandidateStore(client, settings.candidate_ttl_s)
        self._board = Board(client, settings.candidate_ttl_s)
        self._tls_dir = settings.tls_dir
        self._clients: dict[tuple[Any, ...], RankClient] = {}
        self._claims: set[str] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._renew, name="claims", daemon=True).start()

    def handle(self, message: Mapping[str, Any]) -> None:
        """Answer one message, or drop it when nobody waits for an answer any more."""
        run = self._board.run(message["run"])
        remaining = message["deadline"] - self._board.now()
        if run is None or remaining <= 0:
            log.info("rank_dropped", reward=message["reward"], why="run closed" if run is None else "past its deadline")
            return
        key = message["key"]
        answer = self._board.kept(key)
        if answer is None and not self._claim(key):
            answer = {"status": "claimed"}
        if answer is None:
            started = time.monotonic()
            try:
                answer = self._ask(run["rewards"][message["reward"]], message, remaining)
                answer["seconds"] = time.monotonic() - started
                if answer["status"] == "completed" and any(score is not None for score in answer["scores"]):
                    self._board.keep(key, answer)
            finally:
                self._release(key)
        named = {"group": message["group"], "reward": message["reward"], "key": key}
        self._board.push(message["run"], {**answer, **named})
        log.info("rank_answered", group=message["group"], reward=message["reward"], status=answer["status"])

    def _ask(self, record: Mapping[str, Any], message: Mapping[str, Any], remaining: float) -> dict[str, Any]:
        try:
            client = self._client(Endpoint.described(record))
            ranking = client.rank(
                message["prompt"],
                Candidates(self._store, message["candidates"], message["count"]),
                message["metadata"],
                idempotency_key=message["key"],
                deadline_s=remaining,
                location=message["location"],
                poll=False,
                retry=False,
            )
            return completed(ranking, calibrated=client.info(deadline_s=remaining).calibrated)
        except StillPending as pending:
            return {"status": "pending", "location": pending.location, "retry_after": pending.retry_after}
        except MissingCandidates as error:
            return {"status": "missing", "message": str(error)}
        except EndpointError as error:
            return {
                **failed(error.code, str(error), retryable=error.retryable),
                "retry_after": error.retry_after,
                "http_status": error.http_status,
            }
        except ConfigurationError as error:  # certificates that are not here: put there, they will be found
            return failed("configuration", str(error), retryable=True)
        except InvalidInput as error:  # a trainer of another version describes what this one cannot ask
            return failed("configuration", str(error), retryable=False)
        except Exception as error:  # a bug of ours: the run shall know, not wait
            log.exception("rank_crashed")
            why = f"{type(error).__name__} in the rank worker, whose log says more"
            return failed("internal", why, retryable=False)

    def _client(self, endpoint: Endpoint) -> RankClient:
        """The endpoint's client, with its circuit; a new one when its certificates have been renewed."""
        at = (endpoint.model_dump_json(), endpoint.key, tls.stamp(endpoint.tls, self._tls_dir))
        with self._lock:
            if at not in self._clients:
                while len(self._clients) >= MAX_CLIENTS:
                    self._clients.pop(next(iter(self._clients)))
                self._clients[at] = RankClient(endpoint, tls_dir=self._tls_dir)
            return self._clients[at]

    # Claims

    def _claim(self, key: str) -> bool:
        if not self._board.claim(key):
            return False
        with self._lock:
            self._claims.add(key)
        return True

    def _release(self, key: str) -> None:
        with self._lock:
            self._claims.discard(key)
        self._board.release(key)

    def _renew(self) -> None:
        while True:
            time.sleep(CLAIM_TTL_S / 4)
            with self._lock:
                keys = list(self._claims)
            try:
                if keys:
                    self._board.renew(keys)
            except Exception as error:  # Redis is away: the claims run out and are asked again, which is harmless
                log.warning("claims_not_renewed", error=str(error))


class Candidates(Sequence[NDArray[np.uint8]]):
    """A group's images, loaded when first looked at (a pending ranking needs none). Raises MissingCandidates."""

    def __init__(self, store: CandidateStore, reference: str, count: int) -> None:
        self._store, self._reference, self._count = store, reference, count
        self._images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]]:
        if self._images is None:
            self._images = self._store.get(self._reference)
        return self._images[index] if isinstance(index, int) else list(self._images[index])


def failed(code: str, message: str, *, retryable: bool) -> dict[str, Any]:
    """A failure as a run's answer."""
    said = {"status": "failed", "code": code, "message": message, "retryable": retryable}
    return {**said, "retry_after": None, "http_status": None}


def completed(ranking: Ranking, *, calibrated: bool) -> dict[str, Any]:
    """A ranking as a run's answer: scores in candidate order, reasons by index.

    Some endpoints only rank (people, judges of pairs): where no candidate has a score, negated ranks stand for them.
    Of an endpoint that is not `calibrated` scores are an order too.
    """
    scores: list[float | None] = [item.score for item in ranking.results]
    ranks_alone = not any(score is not None for score in scores) and any(item.rank for item in ranking.results)
    if ranks_alone:
        scores = [None if item.rank is None else -float(item.rank) for item in ranking.results]
    errors = {
        str(index): f"{item.error.code}: {item.error.message}"
        for index, item in enumerate(ranking.results)
        if scores[index] is None and item.error is not None
    }
    parts = sorted({name for item in ranking.results for name in item.sub_scores or {}})
    return {
        "status": "completed",
        "scores": scores,
        "ordinal": ranks_alone or not calibrated,
        "sub_scores": {name: [(item.sub_scores or {}).get(name) for item in ranking.results] for name in parts},
        "errors": errors,
        "model": ranking.model,
        "model_revision": ranking.model_revision,
        "recipe_version": ranking.recipe_version,
    }


def register(app: Celery, lane: Lane) -> None:
    """Give the app its one task."""

    @app.task(name=RANK_TASK, bind=True)  # type: ignore[untyped-decorator]
    def rank(self: Task, **message: Any) -> None:
        headers = self.request.headers or {}
        names = {name: str(headers[name]) for name in ("request_id", "job_id") if name in headers}
        with structlog.contextvars.bound_contextvars(**names):
            lane.handle(message)
