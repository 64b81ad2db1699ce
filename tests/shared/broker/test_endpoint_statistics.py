"""How endpoints have been answering: a bounded record that several lanes write, and what it says in numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from dipole.broker.endpoint_statistics import (
    MAX_REQUESTS,
    RECORD_TTL_S,
    EndpointRecord,
    EndpointRequest,
    summarize_requests,
)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


def request(at: float, seconds: float = 0.1, outcome: str = "completed", **more: str) -> EndpointRequest:
    return {"at": at, "seconds": seconds, "outcome": outcome, "circuit": "closed", "revision": "1", **more}  # type: ignore[typeddict-item]


def test_the_record_keeps_the_newest_and_forgets_the_rest(client: redis.Redis) -> None:
    record = EndpointRecord(client)
    for at in range(MAX_REQUESTS + 50):
        record.add_request("bounded", request(float(at)))
    found = record.read_statistics("bounded")
    assert (found.requests, found.since) == (MAX_REQUESTS, 50.0)
    assert found.last is not None
    assert found.last["at"] == MAX_REQUESTS + 49
    assert 0 < client.ttl("dipole:endpoint:bounded") <= RECORD_TTL_S


def test_two_lanes_write_one_record(client: redis.Redis) -> None:
    for at in (1.0, 2.0):
        EndpointRecord(client).add_request("shared", request(at))
    assert EndpointRecord(client).read_statistics("shared").requests == 2


def test_of_an_endpoint_that_nobody_asked_there_is_nothing(client: redis.Redis) -> None:
    found = EndpointRecord(client).read_statistics("never")
    assert (found.requests, found.failures, found.p50_s, found.p95_s, found.last) == (0, {}, None, None, None)


def test_quantiles_are_of_what_was_answered_and_failures_are_counted_by_code() -> None:
    """A timeout of a minute says nothing of how long an answer takes."""
    answered = [request(at, seconds=at / 100) for at in range(1, 101)]
    failed = [request(101, seconds=60.0, outcome="timeout", revision=""), request(102, outcome="circuit_open")]
    found = summarize_requests([*failed[::-1], *answered[::-1]])
    assert (found.p50_s, found.p95_s) == (0.5, 0.95)
    assert found.failures == {"timeout": 1, "circuit_open": 1}
    assert found.requests == 102


def test_the_revision_is_the_last_that_answered() -> None:
    requests = [request(3, outcome="timeout", revision=""), request(2, revision="b"), request(1, revision="a")]
    assert summarize_requests(requests).revision == "b"
