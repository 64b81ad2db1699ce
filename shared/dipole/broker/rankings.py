"""Rankings in flight: runs, claims, answers, and the queue of each reward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import redis

from dipole.broker.connection import MAX_WAIT_S

RANK_TASK = "dipole.rank"
CLAIM_TTL_S = 5.0  # a killed lane's work is free again after this; a living lane renews its claims
LANE_IDLE_S = 900.0  # a reward nobody ranked with for so long needs no lane
_ANNOUNCE = "dipole:lanes:announce"
_LANES = "dipole:lanes"


class Run(TypedDict):
    """One ranker's record in Redis: where its work goes, as `Endpoint.record` has it, keys too."""

    rewards: dict[str, dict[str, Any]]


def queue_name(reward: str) -> str:
    return f"rank.{reward}"


class Board:
    """Runs, claims, answers and lanes: the small keys around the queues."""

    def __init__(self, client: redis.Redis, ttl_s: int, *, claim_ttl_s: float = CLAIM_TTL_S) -> None:
        self._redis, self._ttl_s, self._claim_ms = client, ttl_s, int(claim_ttl_s * 1000)

    def now(self) -> float:
        """Unix time by Redis's clock, the only one that trainers and rank workers share."""
        seconds, micros = self._redis.time()
        return float(seconds) + float(micros) / 1e6

    # Runs: a ranker opens one, its messages name it; when it is closed, messages still queued are void.

    def open_run(self, run_id: str, run: Run) -> bool:
        """Write or refresh the record, and tell rank workers which lanes are needed."""
        now = self.now()
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"dipole:run:{run_id}", json.dumps(run), ex=self._ttl_s)
        pipe.zadd(_LANES, dict.fromkeys(run["rewards"], now))
        pipe.publish(_ANNOUNCE, "lanes")
        pipe.execute()
        return True

    def run(self, run_id: str) -> Run | None:
        data = cast("bytes | None", self._redis.get(f"dipole:run:{run_id}"))
        return None if data is None else cast(Run, json.loads(data))

    def close_run(self, run_id: str) -> None:
        self._redis.delete(f"dipole:run:{run_id}", f"dipole:answers:{run_id}")

    # Answers: a list per run, read by blocking; completed ones are also kept by key, for a repeat of the same question.

    def push(self, run_id: str, answer: Mapping[str, Any]) -> None:
        key = f"dipole:answers:{run_id}"
        pipe = self._redis.pipeline(transaction=False)
        pipe.rpush(key, json.dumps(answer, allow_nan=False))
        pipe.expire(key, self._ttl_s)
        pipe.execute()

    def answers(self, run_id: str, wait_s: float) -> list[dict[str, Any]]:
        """Every answer there is; waits at most `wait_s` (and MAX_WAIT_S) for the first."""
        key = f"dipole:answers:{run_id}"
        found = cast("list[bytes] | None", self._redis.lpop(key, 1024))
        if not found and wait_s > 0:
            first = cast(
                "tuple[bytes, bytes] | None", self._redis.blpop([key], timeout=min(max(wait_s, 0.01), MAX_WAIT_S))
            )
            found = [] if first is None else [first[1]]
        return [json.loads(each) for each in found or []]

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        self._redis.set(f"dipole:answer:{key}", json.dumps(answer, allow_nan=False), ex=self._ttl_s)

    def kept(self, key: str) -> dict[str, Any] | None:
        data = cast("bytes | None", self._redis.get(f"dipole:answer:{key}"))
        return None if data is None else cast("dict[str, Any]", json.loads(data))

    # Claims: who works on a question, so that a repeat does not ask the endpoint twice at the same time.

    def claim(self, key: str) -> bool:
        return bool(self._redis.set(f"dipole:claim:{key}", "1", nx=True, px=self._claim_ms))

    def renew(self, keys: Iterable[str]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.set(f"dipole:claim:{key}", "1", xx=True, px=self._claim_ms)  # xx: never after release
        pipe.execute()

    def release(self, key: str) -> None:
        self._redis.delete(f"dipole:claim:{key}")

    def claimed(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that a lane works on now."""
        found = cast("list[bytes | None]", self._redis.mget([f"dipole:claim:{key}" for key in keys])) if keys else []
        return {key for key, value in zip(keys, found, strict=True) if value is not None}

    # Lanes: which rewards need a queue served.

    def lanes(self) -> list[str]:
        """Rewards that a run wanted within LANE_IDLE_S, the latest first."""
        oldest = self.now() - LANE_IDLE_S
        self._redis.zremrangebyscore(_LANES, "-inf", oldest)
        return [name.decode() for name in cast("list[bytes]", self._redis.zrevrange(_LANES, 0, -1))]

    def beat(self, host: str, ttl_s: float) -> None:
        """Say that the rank worker of a host lives."""
        self._redis.set(f"dipole:rank-worker:{host}", "1", px=int(ttl_s * 1000))

    def beats(self, host: str) -> bool:
        return bool(self._redis.exists(f"dipole:rank-worker:{host}"))

    def lane_announcements(self) -> Any:
        """A subscription that gets a message whenever a run is opened."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(_ANNOUNCE)
        return pubsub
