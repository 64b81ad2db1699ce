"""Claims on questions: one lane at a time works on one, and no claim outlives whoever made it for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from dipole.broker.rankings import CLAIM_TTL_S, TaskCoordination


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


def test_a_claim_from_before_redis_clock_was_set_back_ends_as_any_other(client: redis.Redis) -> None:
    """Expiries are wall-clock times: two hours set back would leave a dead lane's claim for two hours."""
    coordination = TaskCoordination(client, ttl_s=60)
    assert coordination.claim_task("jumped")
    client.pexpire("dipole:claim:jumped", 7_200_000)
    assert not coordination.claim_task("jumped")
    assert 0 < client.pttl("dipole:claim:jumped") <= CLAIM_TTL_S * 1000
    coordination.release_claim("jumped")
    assert coordination.claim_task("jumped")
    coordination.release_claim("jumped")
