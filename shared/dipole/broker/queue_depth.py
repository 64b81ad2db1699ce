"""How much waits on a Celery queue: its length, and how long its oldest message has lain there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import redis

SENT_AT_HEADER = "sent_at"  # of a message: when it was sent, by Redis's clock


@dataclass(frozen=True)
class QueueDepth:
    """Messages that no worker has taken, and the age of the oldest in s; 0 where there is none."""

    messages: int
    oldest_s: float


def read_queue_depth(client: redis.Redis, queue: str, *, now: float) -> QueueDepth:
    """`now` is Redis's clock. kombu pushes on a list's left and takes from its right."""
    pipe = client.pipeline(transaction=True)
    pipe.llen(queue)
    pipe.lindex(queue, -1)
    messages, oldest = cast("tuple[int, bytes | None]", pipe.execute())
    sent_at = None if oldest is None else json.loads(oldest).get("headers", {}).get(SENT_AT_HEADER)
    return QueueDepth(messages, 0.0 if sent_at is None else max(0.0, now - float(sent_at)))
