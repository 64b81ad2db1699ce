"""Rate limits by key, counted in a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from dipole.settings import ApiSettings

ADMIN_KEY = "an-admin-key-of-some-length"


def test_a_key_that_asks_too_often_gets_429_and_others_go_on(run_app: Callable[..., None], redis_url: str) -> None:
    """The answer says when to come back, in the shape of every other; probes and pages are not counted; Redis has no
    key's text.
    """
    client_of_redis = redis.Redis.from_url(redis_url)
    client_of_redis.flushdb()

    async def main(client: httpx.AsyncClient, _: Any) -> None:
        made = (await client.post("/v1/api_keys", json={"name": "ann", "scopes": ["train"]})).json()
        ann = {"authorization": f"Bearer {made['key']}"}
        answers = [await client.get("/v1/models", headers=ann) for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 200, 200, 429]
        refused = answers[-1]
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        problem = refused.json()
        assert (problem["type"], problem["error"]["code"]) == ("urn:dipole:problem:rate-limited", "rate_limited")
        assert problem["detail"] == "this key may ask 3 per 1 hour: come back later"
        assert (await client.get("/v1/models")).status_code == 200, "another key"
        for _ in range(6):
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 401
        assert (await client.post("/v1/files", headers=ann)).status_code == 429
        (entry, *_) = (await client.get("/v1/audit")).json()["data"]
        assert (entry["caller_name"], entry["status"]) == ("ann", 429), "a refused one is in the audit log"
        keys = b" ".join(client_of_redis.keys("dipole:limits*"))
        assert keys
        assert made["key"].encode() not in keys
        assert ADMIN_KEY.encode() not in keys

    run_app(main, api_key=ADMIN_KEY, api_rate_limit="3/hour", redis_url=redis_url)
    client_of_redis.close()


def test_several_processes_count_together(run_app: Callable[..., None], redis_url: str) -> None:
    """What one API process has counted, the next goes on from."""
    redis.Redis.from_url(redis_url).flushdb()

    async def ask(client: httpx.AsyncClient, _: Any) -> None:
        statuses.append((await client.get("/v1/models")).status_code)

    statuses: list[int] = []
    for _ in range(3):
        run_app(ask, api_key=ADMIN_KEY, api_rate_limit="100/minute;2/day", redis_url=redis_url)
    assert statuses == [200, 200, 429]


def test_without_redis_nothing_is_limited(
    run_app: Callable[..., None],
    tmp_path: Path,
    redis_server: Callable[..., AbstractContextManager[str]],
) -> None:
    """Jobs go on while Redis is away, and so do requests."""
    with redis_server(tmp_path) as url:
        pass

    async def main(client: httpx.AsyncClient, _: Any) -> None:
        for _ in range(3):
            assert (await client.get("/v1/models")).status_code == 200

    run_app(main, api_key=ADMIN_KEY, api_rate_limit="1/hour", redis_url=url)


@pytest.mark.parametrize("limit", ["", "often", "0/minute", "5/fortnight", "5/minute;;", "5 per minute, 3"])
def test_a_limit_that_is_none_is_refused_where_it_is_set(limit: str) -> None:
    with pytest.raises(ValueError, match="600/minute"):
        ApiSettings(api_rate_limit=limit)
