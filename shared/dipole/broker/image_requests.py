"""What travels through Redis between the API and the samplers: requests, claims, answers, and images by reference.

A request to plan a job goes the same way, and its answer has the plan in it.

| who                 | does                                           | waits for, woken by                         |
|---------------------|------------------------------------------------|---------------------------------------------|
| the API             | opens a request below the limit, sends its     | the answer: a push, or its poll's interval; |
|                     | message on the queue `images`                  | its deadline or a hang-up ends it           |
| sampler             | claims and draws it, stores each image, pushes | messages: Redis                             |
|                     | a small JSON answer                            |                                             |
| sampler's heartbeat | renews the claim; says that it lives           | its own clock, also while a model is loaded |

Claims and answers are TaskCoordination's, under the request's id. A request is open until the API has its answer or
gives up; a sampler draws nothing for one that is not, so a message that comes again, or too late, is void. What nobody
fetches expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import redis

from dipole.broker.process_health import HEARTBEAT_TTL_S
from dipole.broker.rankings import TaskCoordination

IMAGE_TASK = "dipole.images"
PLAN_TASK = "dipole.plan"  # on the same queue: what samplers do that is no image
IMAGE_QUEUE = "images"
RESULT_TTL_S = 300  # for images and answers that nobody fetched
# a killed sampler is noticed after this; a living one renews, also while it loads a model
REQUEST_CLAIM_TTL_S = 10.0

_OPEN_KEY = "dipole:images:open"  # request id -> deadline
_SAMPLERS_KEY = "dipole:samplers"  # host -> until when its last beat counts


def image_coordination(client: redis.Redis) -> TaskCoordination:
    """Claims and answers of requests."""
    return TaskCoordination(client, RESULT_TTL_S, claim_ttl_s=REQUEST_CLAIM_TTL_S)


class ImageRequestStore:
    """Open requests, drawn images, and who draws.

    Times are Unix seconds by Redis's clock (TaskCoordination.server_time).
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    # Requests

    def open(self, request_id: str, *, now: float, deadline: float, limit: int) -> bool:
        """Open a request, unless `limit` are open already."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.zremrangebyscore(_OPEN_KEY, "-inf", now)
        pipe.zadd(_OPEN_KEY, {request_id: deadline})
        pipe.zcard(_OPEN_KEY)
        admitted = bool(pipe.execute()[-1] <= limit)
        if not admitted:
            self._redis.zrem(_OPEN_KEY, request_id)
        return admitted

    def is_open(self, request_id: str) -> bool:
        """Whether somebody waits for it; deadlines are looked at by those who know the time."""
        return self._redis.zscore(_OPEN_KEY, request_id) is not None

    def close(self, request_id: str, images: Sequence[str] = ()) -> None:
        """Forget a request and what was drawn for it."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrem(_OPEN_KEY, request_id)
        pipe.delete(f"dipole:answers:{request_id}", *images)
        pipe.execute()

    # Images

    def put_image(self, request_id: str, index: int, image: bytes) -> str:
        """Store an image; its reference."""
        reference = f"dipole:image:{request_id}:{index}"
        self._redis.set(reference, image, ex=RESULT_TTL_S)
        return reference

    def get_images(self, references: Sequence[str]) -> list[bytes | None]:
        return cast("list[bytes | None]", self._redis.mget(list(references)))

    # Samplers

    def record_heartbeat(self, host: str, *, now: float) -> None:
        """Say that the sampler of a host lives."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zremrangebyscore(_SAMPLERS_KEY, "-inf", now)
        pipe.zadd(_SAMPLERS_KEY, {host: now + HEARTBEAT_TTL_S})
        pipe.execute()

    def remove_heartbeat(self, host: str) -> None:
        self._redis.zrem(_SAMPLERS_KEY, host)

    def has_heartbeat(self, host: str, *, now: float) -> bool:
        until = self._redis.zscore(_SAMPLERS_KEY, host)
        return until is not None and until > now

    def count_samplers(self, *, now: float) -> int:
        """How many hosts have a sampler that lives."""
        return int(self._redis.zcount(_SAMPLERS_KEY, now, "+inf"))
