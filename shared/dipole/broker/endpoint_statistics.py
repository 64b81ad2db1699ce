"""How reward endpoints have been answering: a short record of each reward, which rank lanes write and the API reads.

    dipole:endpoint:<reward>   a list, newest first, of the last MAX_REQUESTS requests, whichever lane made them

The record is bounded, expires, and may be lost at any moment: nothing is decided by it. A known answer is no request,
and a ranking that is still pending is one that took as long as its first answer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import redis

MAX_REQUESTS = 200
RECORD_TTL_S = 7 * 86400


class EndpointRequest(TypedDict):
    """One request as a lane saw it. `outcome` is `completed`, `pending`, or the code of a failure."""

    at: float  # by Redis's clock
    seconds: float
    outcome: str
    circuit: str  # of the lane that asked, afterwards
    revision: str  # what answered, where it said


@dataclass(frozen=True)
class EndpointStatistics:
    """What the last `requests` requests say. Seconds are of those that were answered; None where none was."""

    requests: int
    failures: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    since: float | None
    last: EndpointRequest | None
    revision: str | None


class EndpointRecord:
    """The records of all endpoints, over one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def add_request(self, reward: str, request: EndpointRequest) -> None:
        key = _record_key(reward)
        pipe = self._redis.pipeline(transaction=False)
        pipe.lpush(key, json.dumps(request, allow_nan=False))
        pipe.ltrim(key, 0, MAX_REQUESTS - 1)
        pipe.expire(key, RECORD_TTL_S)
        pipe.execute()

    def read_statistics(self, reward: str) -> EndpointStatistics:
        """Of a reward that nobody asked lately it has no requests."""
        rows = cast("list[bytes]", self._redis.lrange(_record_key(reward), 0, MAX_REQUESTS - 1))
        return summarize_requests([json.loads(each) for each in rows])


def summarize_requests(requests: Sequence[EndpointRequest]) -> EndpointStatistics:
    """Requests, newest first, in numbers."""
    answered = sorted(each["seconds"] for each in requests if each["outcome"] in ("completed", "pending"))
    failures = Counter(each["outcome"] for each in requests if each["outcome"] not in ("completed", "pending"))
    return EndpointStatistics(
        requests=len(requests),
        failures=dict(failures.most_common()),
        p50_s=_quantile(answered, 0.5),
        p95_s=_quantile(answered, 0.95),
        since=requests[-1]["at"] if requests else None,
        last=requests[0] if requests else None,
        revision=next((each["revision"] for each in requests if each["revision"]), None),
    )


def _quantile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None


def _record_key(reward: str) -> str:
    return f"dipole:endpoint:{reward}"
