"""Rankings in flight: runs, claims, answers, and the queue of each reward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import redis

from dipole.broker.connection import MAX_BLOCKING_READ_S
from dipole.broker.messages import RunRecord

RANK_TASK = "dipole.rank"
CLAIM_TTL_S = 5.0  # a killed lane's work is free again after this; a living lane renews its claims
LANE_IDLE_TIMEOUT_S = 900.0  # a reward nobody ranked with for so long needs no lane
_LANE_CHANNEL = "dipole:lanes:announce"
_LANES_KEY = "dipole:lanes"
_MEMORIES_KEY = "dipole:lanes:memories"
_HEARTBEAT_PREFIX = "dipole:rank-worker:"


def queue_name(reward: str) -> str:
    return f"rank.{reward}"


class TaskCoordination:
    """Runs, claims, answers and lanes: the small keys around the queues."""

    def __init__(self, client: redis.Redis, ttl_s: int, *, claim_ttl_s: float = CLAIM_TTL_S) -> None:
        self._redis, self._ttl_s, self._claim_ms = client, ttl_s, int(claim_ttl_s * 1000)

    def server_time(self) -> float:
        """Unix time by Redis's clock, the only one that trainers and rank workers share."""
        seconds, micros = self._redis.time()
        return float(seconds) + float(micros) / 1e6

    # Runs: a ranker opens one, its messages name it; when it is closed, messages still queued are void.

    def open_run(self, run_id: str, run: RunRecord, *, ttl_s: int | None = None) -> bool:
        """Write the record, for `ttl_s` where it is not renewed, and tell rank workers which lanes are needed."""
        now = self.server_time()
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"dipole:run:{run_id}", json.dumps(run), ex=ttl_s or self._ttl_s)
        pipe.zadd(_LANES_KEY, dict.fromkeys(run["rewards"], now))
        pipe.publish(_LANE_CHANNEL, "lanes")
        pipe.execute()
        return True

    def renew_run(self, run_id: str, rewards: Sequence[str]) -> bool:
        """Keep the record and its lanes for as long again; False where Redis has lost any of them."""
        now = self.server_time()
        pipe = self._redis.pipeline(transaction=False)
        pipe.expire(f"dipole:run:{run_id}", self._ttl_s)
        for reward in rewards:
            pipe.zscore(_LANES_KEY, reward)
        pipe.zadd(_LANES_KEY, dict.fromkeys(rewards, now), xx=True)
        has_record, *lanes, _ = pipe.execute()
        return bool(has_record) and None not in lanes

    def get_run(self, run_id: str) -> RunRecord | None:
        data = cast("bytes | None", self._redis.get(f"dipole:run:{run_id}"))
        return None if data is None else cast(RunRecord, json.loads(data))

    def close_run(self, run_id: str) -> None:
        self._redis.delete(f"dipole:run:{run_id}", f"dipole:answers:{run_id}")

    # Answers: a list per run, read by blocking; completed ones are also kept by key, for a repeat of the same question.

    def push_answer(self, run_id: str, answer: Mapping[str, Any]) -> None:
        key = f"dipole:answers:{run_id}"
        pipe = self._redis.pipeline(transaction=False)
        pipe.rpush(key, json.dumps(answer, allow_nan=False))
        pipe.expire(key, self._ttl_s)
        pipe.execute()

    def pop_answers(self, run_id: str, wait_s: float) -> list[dict[str, Any]]:
        """Every answer there is; waits at most `wait_s` (and MAX_BLOCKING_READ_S) for the first."""
        key = f"dipole:answers:{run_id}"
        found = cast("list[bytes] | None", self._redis.lpop(key, 1024))
        if not found and wait_s > 0:
            first = cast(
                "tuple[bytes, bytes] | None",
                self._redis.blpop([key], timeout=min(max(wait_s, 0.01), MAX_BLOCKING_READ_S)),
            )
            found = [] if first is None else [first[1]]
        return [json.loads(each) for each in found or []]

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        self._redis.set(f"dipole:answer:{key}", json.dumps(answer, allow_nan=False), ex=self._ttl_s)

    def kept_answer(self, key: str) -> dict[str, Any] | None:
        data = cast("bytes | None", self._redis.get(f"dipole:answer:{key}"))
        return None if data is None else cast("dict[str, Any]", json.loads(data))

    # Claims: who works on a question, so that a repeat does not ask the endpoint twice at the same time.

    def claim_task(self, key: str) -> bool:
        name = f"dipole:claim:{key}"
        if self._redis.set(name, "1", nx=True, px=self._claim_ms):
            return True
        # Redis's clock was set back, and a claim that nobody renews would stay for as long
        if self._redis.pttl(name) > self._claim_ms:
            self._redis.set(name, "1", xx=True, px=self._claim_ms)
        return False

    def renew_claims(self, keys: Iterable[str]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.set(f"dipole:claim:{key}", "1", xx=True, px=self._claim_ms)  # xx: never after release
        pipe.execute()

    def release_claim(self, key: str) -> None:
        self._redis.delete(f"dipole:claim:{key}")

    def claimed_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that a lane works on now."""
        found = cast("list[bytes | None]", self._redis.mget([f"dipole:claim:{key}" for key in keys])) if keys else []
        return {key for key, value in zip(keys, found, strict=True) if value is not None}

    # Lanes: which rewards need a queue served.

    def wanted_lanes(self) -> list[str]:
        """Rewards that a run wanted within LANE_IDLE_TIMEOUT_S, the latest first."""
        oldest = self.server_time() - LANE_IDLE_TIMEOUT_S
        self._redis.zremrangebyscore(_LANES_KEY, "-inf", oldest)
        return [name.decode() for name in cast("list[bytes]", self._redis.zrevrange(_LANES_KEY, 0, -1))]

    def record_heartbeat(self, host: str, ttl_s: float, memory_id: str = "") -> None:
        """Say that the rank worker of a host lives, and which folder of candidates its lanes read, if any."""
        now = self.server_time()
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"{_HEARTBEAT_PREFIX}{host}", "1", px=int(ttl_s * 1000))
        pipe.zremrangebyscore(_MEMORIES_KEY, "-inf", now)
        pipe.zadd(_MEMORIES_KEY, {memory_id: now + ttl_s})
        pipe.execute()

    def lane_memories(self) -> set[str]:
        """The ids of the folders of candidates that living rank workers read; "" of one that reads none."""
        found = cast("list[bytes]", self._redis.zrangebyscore(_MEMORIES_KEY, self.server_time(), "+inf"))
        return {each.decode() for each in found}

    def has_heartbeat(self, host: str) -> bool:
        return bool(self._redis.exists(f"{_HEARTBEAT_PREFIX}{host}"))

    def living_hosts(self) -> list[str]:
        """Every host whose rank worker has a heartbeat."""
        keys = cast("Iterator[bytes]", self._redis.scan_iter(match=f"{_HEARTBEAT_PREFIX}*", count=1000))
        return sorted(key.decode().removeprefix(_HEARTBEAT_PREFIX) for key in keys)

    def subscribe_lanes(self) -> Any:
        """A subscription that gets a message whenever a run is opened."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(_LANE_CHANNEL)
        return pubsub
