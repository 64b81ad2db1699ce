"""What travels through Redis between the API and the samplers: orders, claims, answers, and images by reference.

    API       opens an order while fewer than the limit are open, sends its message on the queue `images`, waits
    sampler   takes a message, claims the order, draws, stores each image, pushes a small JSON answer

Claims and answers are queue.Board's, under the order's id. An order is open until the API has its answer or gives up;
a sampler draws nothing for one that is not, so a message that comes again, or too late, is void. What nobody fetches
expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import redis

from dipole.broker.rankings import Board

IMAGE_TASK = "dipole.images"
IMAGE_QUEUE = "images"
RESULT_TTL_S = 300  # for images and answers that nobody fetched
ORDER_CLAIM_S = 10.0  # a killed sampler is noticed after this; a living one renews, also while it loads a model
BEAT_TTL_S = 30.0

_OPEN = "dipole:images:open"  # order id -> deadline
_SAMPLERS = "dipole:samplers"  # host -> until when its last beat counts


class Place(TypedDict):
    """Where a checkpoint lies in the artifacts: `jobs/<job>/<path>`."""

    id: str
    job: str
    path: str


class Order(TypedDict):
    """A message: what is to be drawn. `model` are the fields of a job's spec that make a generator."""

    order: str
    model: dict[str, Any]
    checkpoint: Place | None  # none: the base
    prompt: str
    seeds: list[int]
    deadline: float  # by Redis's clock


def board_of(client: redis.Redis) -> Board:
    """Claims and answers of orders."""
    return Board(client, RESULT_TTL_S, claim_ttl_s=ORDER_CLAIM_S)


class ImageBoard:
    """Open orders, drawn images, and who draws. Times are Unix seconds by Redis's clock (Board.now)."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    # Orders

    def open(self, order: str, *, now: float, deadline: float, limit: int) -> bool:
        """Open an order, unless `limit` are open already."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.zremrangebyscore(_OPEN, "-inf", now)
        pipe.zadd(_OPEN, {order: deadline})
        pipe.zcard(_OPEN)
        admitted = bool(pipe.execute()[-1] <= limit)
        if not admitted:
            self._redis.zrem(_OPEN, order)
        return admitted

    def is_open(self, order: str) -> bool:
        """Whether somebody waits for it; deadlines are looked at by those who know the time."""
        return self._redis.zscore(_OPEN, order) is not None

    def close(self, order: str, images: Sequence[str] = ()) -> None:
        """Forget an order and what was drawn for it."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrem(_OPEN, order)
        pipe.delete(f"dipole:answers:{order}", *images)
        pipe.execute()

    # Images

    def put(self, order: str, index: int, image: bytes) -> str:
        """Store an image; its reference."""
        reference = f"dipole:image:{order}:{index}"
        self._redis.set(reference, image, ex=RESULT_TTL_S)
        return reference

    def get(self, references: Sequence[str]) -> list[bytes | None]:
        return cast("list[bytes | None]", self._redis.mget(list(references)))

    # Samplers

    def beat(self, host: str, *, now: float) -> None:
        """Say that the sampler of a host lives."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zremrangebyscore(_SAMPLERS, "-inf", now)
        pipe.zadd(_SAMPLERS, {host: now + BEAT_TTL_S})
        pipe.execute()

    def leave(self, host: str) -> None:
        self._redis.zrem(_SAMPLERS, host)

    def beats(self, host: str, *, now: float) -> bool:
        until = self._redis.zscore(_SAMPLERS, host)
        return until is not None and until > now

    def samplers(self, *, now: float) -> int:
        """How many hosts have a sampler that lives."""
        return int(self._redis.zcount(_SAMPLERS, now, "+inf"))
