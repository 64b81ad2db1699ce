"""What travels through Redis between a trainer and the rank workers: the Celery app, candidates, runs, claims, answers.

    trainer    put(images) once, a message per reward on the queue `rank.<reward>`, then waits for its run's answers
    rank lane  takes a message, loads the candidates, asks the endpoint, pushes a small JSON answer

A message is JSON and carries references only: `sha256:…` of the images and the run's id. Endpoint URLs and keys are in
the run's record, which is deleted with the run. Every key but the queues expires. Truth lives elsewhere: whatever is
lost here (a message, an answer, all of Redis) is asked again by the trainer, which knows what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import redis
from celery import Celery
from numpy.typing import NDArray
from redis.connection import PythonRespSerializer

from dipole.errors import DipoleError, InvalidInput, TooLarge
from dipole.protocol.images import digests, pixels_of
from dipole.protocol.schemas import MAX_BODY_BYTES

RANK_TASK = "dipole.rank"
VISIBILITY_S = 60  # a message nobody acknowledged comes back after this; tasks are shorter, or no-ops when repeated
CLAIM_TTL_S = 5.0  # a killed lane's work is free again after this; a living lane renews its claims
LANE_IDLE_S = 900.0  # a reward nobody ranked with for so long needs no lane
UNCOPIED_BYTES = 6000  # a longer value is sent from where it lies
PIECE_BYTES = 2**20  # read at once: memory for so much is at hand, megabytes more would be mapped page by page
MAX_WAIT_S = 5.0  # longest single blocking read, below the socket timeout

_ANNOUNCE = "dipole:lanes:announce"
_LANES = "dipole:lanes"


class MissingCandidates(DipoleError):
    """The images of a group are no longer in Redis: their time was up, or Redis was restarted."""

    slug = "missing-candidates"


class Run(TypedDict):
    """One ranker's record in Redis: where its work goes, as `Endpoint.record` has it, keys too."""

    rewards: dict[str, dict[str, Any]]


def queue_name(reward: str) -> str:
    return f"rank.{reward}"


def celery_app(redis_url: str) -> Celery:
    """The app of both sides. JSON only; acknowledged after the work; no result backend, answers are pushed."""
    app = Celery("dipole", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,  # nothing is steered by broadcast, so nothing may be
        worker_send_task_events=False,
        enable_utc=True,
    )
    return app


def connect(redis_url: str) -> redis.Redis:
    """A Redis client whose calls end: five seconds to connect, fifteen for any answer.

    Answers are parsed by hiredis; commands are not packed by it, because it copies a group's megabytes twice.
    """
    client = redis.Redis.from_url(
        redis_url, socket_connect_timeout=5, socket_timeout=MAX_WAIT_S + 10, health_check_interval=30
    )
    packer = PythonRespSerializer(UNCOPIED_BYTES, client.get_encoder().encode)
    client.connection_pool.connection_kwargs["command_packer"] = packer
    return client


class CandidateStore:
    """Groups' images in Redis, once each, under the hash of their content, until `ttl_s` after the last use.

    A value is the bare pixels: they travel from one array into another without being copied or parsed on the way.
    The reference says the rest: `sha256:<hex>:24x512x512` is uint8 (24, 512, 512, 3).
    """

    def __init__(self, client: redis.Redis, ttl_s: int) -> None:
        self._redis, self._ttl_s = client, ttl_s

    @staticmethod
    def reference(images: NDArray[np.uint8]) -> str:
        """The name of uint8 (K, H, W, 3): equal for equal images, whoever computes it."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.size == 0:
            raise InvalidInput(
                f"images: expected uint8 (K, H, W, 3), got {images.dtype} {images.shape}", field="images"
            )
        if images.nbytes > MAX_BODY_BYTES:
            raise TooLarge(f"images: a group of {images.nbytes} bytes exceeds {MAX_BODY_BYTES}", field="images")
        whole = hashlib.sha256(b"".join(digests([pixels_of(image) for image in images])))
        return f"sha256:{whole.hexdigest()}:{'x'.join(map(str, images.shape[:3]))}"

    def put(self, reference: str, images: NDArray[np.uint8]) -> bool:
        """Store a group's images; whether they were not there already."""
        known = bool(self._redis.expire(_key(reference), self._ttl_s))
        if not known:
            self._redis.set(_key(reference), pixels_of(images), ex=self._ttl_s)
        return not known

    def drop(self, references: Sequence[str]) -> None:
        """Free images before their time; whoever still needs them finds them missing and says so."""
        if references:
            self._redis.unlink(*map(_key, references))

    def get(self, reference: str) -> NDArray[np.uint8]:
        """The images. Raises MissingCandidates where there are none, or not all of their bytes."""
        shape = (*map(int, reference.rpartition(":")[2].split("x")), 3)
        pixels = np.empty(math.prod(shape), np.uint8)
        for start in range(
            0, pixels.size, PIECE_BYTES
        ):  # memory for a small answer is at hand, for a large one it is not
            piece = pixels[start : start + PIECE_BYTES]
            data = cast("bytes", self._redis.getrange(_key(reference), start, start + piece.size - 1))
            if len(data) != piece.size:
                raise MissingCandidates(f"candidates {reference} are not in Redis")
            piece[:] = np.frombuffer(data, np.uint8)
        return pixels.reshape(shape)


def _key(reference: str) -> str:
    return f"dipole:candidates:{reference}"


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
