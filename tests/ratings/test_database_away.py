"""The service while its PostgreSQL is away: 503 with its name, a process that lives, and all of it there afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from .conftest import ServeApp
from .people import group
from .test_api import come, rate

pytestmark = pytest.mark.anyio


async def test_what_was_taken_is_there_when_the_database_is_back(serve_app: ServeApp, postgres_url: str) -> None:
    """Trainers, raters and probes are told to come back; housekeeping goes on by itself."""
    with psycopg.connect(postgres_url) as connection:
        name = connection.info.dbname
    others = postgres_url.replace(f"/{name}?", "/postgres?")

    def allow_connections(allowed: bool) -> None:
        with psycopg.connect(others, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(allowed).lower()}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    async with serve_app(ratings_database_url=postgres_url) as client:
        pending = (await client.post("/v1/rank", json=group([10, 20, 30]))).json()["id"]
        await come(client)
        await asyncio.to_thread(allow_connections, False)
        for method, path in (
            ("GET", "/readyz"),
            ("GET", f"/v1/rankings/{pending}"),
            ("GET", "/v1/rater"),
            ("POST", "/v1/rater/leases"),
            ("GET", "/v1/ratings/status"),
        ):
            refused = await client.request(method, path)
            assert refused.status_code == 503, path
            assert int(refused.headers["retry-after"]) > 0
            assert "the ratings database" in refused.json()["detail"]
        assert (await client.post("/v1/rank", json=group([1, 2]))).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        await asyncio.sleep(1.2)  # a round of housekeeping that finds nothing
        await asyncio.to_thread(allow_connections, True)
        assert (await client.get("/readyz")).status_code == 200
        await rate(client)
        ranking = (await client.get(f"/v1/rankings/{pending}")).json()
        assert [item["rank"] for item in ranking["results"]] == [3, 2, 1]


async def test_tables_of_another_version_are_named(serve_app: ServeApp, tmp_path: Path) -> None:
    """What is lacking, and the command that makes it."""
    async with serve_app() as client:
        with client.parts.database.writing() as session:  # type: ignore[attr-defined]
            session.connection().exec_driver_sql("ALTER TABLE tasks RENAME TO gone")
        refused = await client.get("/readyz")
        assert refused.status_code == 503
        assert "dipole db upgrade-ratings" in refused.json()["detail"]
