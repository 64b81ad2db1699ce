"""What the API says while what it stands on is away, full or out of connections: 503, its name, and when to come back.

Over a real PostgreSQL, a store whose client fails, and a disk without room; never 500, and never the caller's fault.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from dipole.database import engine as database_engine
from dipole.settings import ApiSettings
from dipole_trainer.database.engine import upgrade_database

from ...s3_server import FULL as FULL_S3
from ...s3_server import running_s3

JOBS = "/v1/fine_tuning/jobs"
JOB = {
    "prompts": [{"prompt": "a red square"}],
    "rewards": [{"name": "shapes", "url": "http://127.0.0.1:9"}],
    "steps": 4,
    "allow_unready": True,
}
Client = httpx.AsyncClient
RunApp = Callable[..., None]


def assert_unavailable(answer: httpx.Response, *words: str) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    problem = answer.json()
    assert problem["type"] == "urn:dipole:problem:dependency-unavailable"
    assert problem["error"]["type"] == "server_error"
    for word in words:
        assert word in problem["detail"]


def upload(client: Client, data: bytes = b'{"prompt": "x"}\n') -> Awaitable[httpx.Response]:
    return client.post("/v1/files", files={"file": ("p.jsonl", data)}, data={"purpose": "fine-tune"})


def test_a_database_that_is_away_is_named_on_every_route(run_app: RunApp, postgres_url: str, tmp_path: Path) -> None:
    """Reads, writes, keys of callers and /readyz; what needs no database goes on, and all of it when it is back."""
    upgrade_database(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        name = connection.info.dbname
    others = postgres_url.replace(f"/{name}?", "/postgres?")

    async def test(client: Client, state: Any) -> None:
        assert (await client.post(JOBS, json=JOB)).status_code == 200
        files = sorted((tmp_path / "artifacts" / "files").iterdir())
        with psycopg.connect(others, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        for path in (JOBS, f"{JOBS}/ftjob-1", f"{JOBS}/ftjob-1/stream", "/v1/files", "/v1/rewards", "/readyz"):
            assert_unavailable(await client.get(path), "the jobs database does not answer")
        assert_unavailable(await client.post(JOBS, json=JOB), "jobs database")
        assert_unavailable(await upload(client), "jobs database")
        left = sorted((tmp_path / "artifacts" / "files").iterdir())
        assert left == files, "no file is left that nobody knows"
        another = await client.get(JOBS, headers={"authorization": "Bearer some-other-key-entirely"})
        assert_unavailable(another, "jobs database")
        assert (await client.get("/livez")).status_code == 200
        with psycopg.connect(others, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert (await client.get("/readyz")).status_code == 200

    run_app(test, database_url=postgres_url, api_key="an-admin-key-of-some-length")


def test_a_pool_that_is_used_up_is_told_as_that(
    run_app: RunApp, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_engine, "POOL_TIMEOUT_S", 0.01)
    upgrade_database(postgres_url)

    async def test(client: Client, state: Any) -> None:
        held = [state.database.engine.connect() for _ in range(15)]
        assert_unavailable(await client.get(JOBS), "every connection of this process is in use")
        for connection in held:
            connection.close()
        assert (await client.get(JOBS)).status_code == 200

    run_app(test, database_url=postgres_url)


def test_a_database_without_tables_says_what_to_run(run_app: RunApp, postgres_url: str, tmp_path: Path) -> None:
    async def test(client: Client, state: Any) -> None:
        for path in (JOBS, "/readyz"):
            assert_unavailable(await client.get(path), "run `dipole db upgrade`")

    run_app(test, database_url=postgres_url)


def test_a_locked_sqlite_is_no_fault_of_the_caller(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_engine, "BUSY_TIMEOUT_S", 0)

    async def test(client: Client, state: Any) -> None:
        with state.database.engine.connect() as holder:
            holder.exec_driver_sql("ROLLBACK")
            holder.exec_driver_sql("BEGIN EXCLUSIVE")
            assert_unavailable(await client.post(JOBS, json=JOB), "the jobs database is locked")
            holder.exec_driver_sql("ROLLBACK")
            holder.exec_driver_sql("BEGIN")

    run_app(test)


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError, RuntimeError, ValueError])
def test_an_artifact_store_that_fails_is_named(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Whatever its client raises, on every way in and out; a create that needs a file too."""

    def fail(*_: Any, **__: Any) -> None:
        raise kind("the bucket is away")

    async def test(client: Client, state: Any) -> None:
        file = (await upload(client)).json()["id"]
        job = (await client.post(JOBS, json=JOB)).json()["id"]
        for name in ("info", "put_file", "makedirs"):
            monkeypatch.setattr(MemoryFileSystem, name, fail)
        named = ("the artifact store (DIPOLE_ARTIFACTS_URL) does not answer", "the bucket is away")
        assert_unavailable(await upload(client), *named)
        assert_unavailable(await client.get(f"/v1/files/{file}/content"), *named)
        assert_unavailable(await client.post(JOBS, json=JOB), *named)
        assert_unavailable(await client.post(JOBS, json={**JOB, "prompts": [], "training_file": file}), *named)
        assert_unavailable(await client.get(f"{JOBS}/{job}/artifacts"), *named)
        assert_unavailable(await client.get(f"{JOBS}/{job}/artifacts/samples/step-1.png"), *named)

    run_app(test, artifacts_url="memory://away")


def test_a_full_store_says_so_and_keeps_no_half_of_a_file(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(_: Any, source: str, target: str, **__: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test(client: Client, state: Any) -> None:
        with monkeypatch.context() as full:
            full.setattr(LocalFileSystem, "put_file", fill_up)
            full.setattr(LocalFileSystem, "cp_file", fill_up)
            assert_unavailable(await upload(client), "the artifact store", "is full")
            assert_unavailable(await client.post(JOBS, json=JOB), "the artifact store", "is full")
        assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
        assert (await upload(client)).status_code == 200

    run_app(test)


def test_a_real_object_store_that_is_away_or_full_is_named(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP to an S3 server: what it has is never missing, and goes to whoever asks when it is back."""

    async def test(client: Client, state: Any) -> None:
        line = b'{"prompt": "a red square"}\n'
        file = (await upload(client, line)).json()["id"]
        job = (await client.post(JOBS, json=JOB)).json()["id"]
        (tmp_path / "sheet").write_bytes(bytes(100_000))
        state.artifacts.write_file(f"jobs/{job}/samples/step-1.png", tmp_path / "sheet")
        paths = [f"/v1/files/{file}/content", f"{JOBS}/{job}/artifacts", f"{JOBS}/{job}/artifacts/samples/step-1.png"]
        with s3.away():
            for path in paths:
                assert_unavailable(await client.get(path), "the artifact store (DIPOLE_ARTIFACTS_URL) does not answer")
            assert_unavailable(await upload(client), "does not answer")
            assert_unavailable(await client.post(JOBS, json={**JOB, "prompts": [], "training_file": file}), "answer")
        s3.full = FULL_S3
        assert_unavailable(await upload(client), "the artifact store", "is full", "minimum free drive threshold")
        assert [(await client.get(path)).status_code for path in paths] == [200] * 3
        s3.full = None
        assert (await client.get(paths[0])).content == line
        assert (await client.get(paths[2])).content == bytes(100_000)
        assert (await upload(client)).status_code == 200

    with running_s3(monkeypatch) as s3:
        run_app(test, artifacts_url="s3://artifacts/dipole")


class FullFile:
    """A temporary file on a disk without room."""

    def __init__(self, real: BinaryIO) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_room_for_an_upload_on_the_way_in_is_not_a_broken_body(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework tells whatever happens while it reads a body as the caller's 400."""
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *args, **options: FullFile(real(*args, **options)))

    async def test(client: Client, state: Any) -> None:
        answer = await upload(client, b'{"prompt": "x"}\n' * 200_000)  # too large for memory
        assert_unavailable(answer, "a disk of this server is full")

    run_app(test)


def test_a_fault_of_ours_is_a_500_and_not_the_callers(
    run_app: RunApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that does not fit its own model, and a model of ours that is made wrongly."""

    async def test(client: Client, state: Any) -> None:
        job = (await client.post(JOBS, json=JOB)).json()["id"]
        monkeypatch.setattr(state.ledger, "list_groups", lambda *_, **__: ([{"no": object()}], False))
        answer = await client.get(f"{JOBS}/{job}/rankings")
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:dipole:problem:internal")

        def build_nonsense(*_: Any, **__: Any) -> None:
            ApiSettings(api_port="?")  # a ValidationError of a model of ours

        monkeypatch.setattr(state.jobs, "list_events", build_nonsense)
        answer = await client.get(f"{JOBS}/{job}/events")
        assert (answer.status_code, answer.json()["errors"]) == (500, [])

    run_app(test)


def test_a_database_that_is_asked_wrongly_is_a_fault_of_ours(
    run_app: RunApp, postgres_url: str, tmp_path: Path
) -> None:
    async def test(client: Client, state: Any) -> None:
        def ask_wrongly(*_: Any, **__: Any) -> None:
            with state.database.reading() as session:
                session.execute(sa.text("SELECT 1/0"))

        state.rewards.list_rewards = ask_wrongly
        answer = await client.get("/v1/rewards")
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:dipole:problem:internal")

    run_app(test, database_url=postgres_url)
