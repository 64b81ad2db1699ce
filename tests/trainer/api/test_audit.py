"""The audit log: each request that may change something, whoever sends it and whatever it is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from dipole_trainer.api import audit
from dipole_trainer.database.tables import AuditRow
from dipole_trainer.registry.audit_log import AuditEntry, AuditLog

from ...processes import run_dipole

ADMIN_KEY = "an-admin-key-of-some-length"
JOBS = "/v1/fine_tuning/jobs"
JOB = {
    "model": "tiny-turbo", "prompts": [{"prompt": "a red square"}], "candidates": 4, "allow_unready": True,
    "method": {"drpo": {"positives": 1, "negatives": 1}}, "rewards": [{"name": "s", "url": "http://127.0.0.1:9"}],
}  # fmt: skip


async def entries(client: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    page = (await client.get("/v1/audit", params={"limit": 100, **filters})).raise_for_status().json()
    return list(page["data"])


async def headers_of_ann(client: httpx.AsyncClient, scopes: Sequence[str] = ("train",)) -> dict[str, str]:
    made = await client.post("/v1/api_keys", json={"name": "ann", "scopes": list(scopes)})
    return {"authorization": f"Bearer {made.raise_for_status().json()['key']}"}


def test_who_did_what_is_written_and_paged(run_app: Callable[..., None]) -> None:
    """A key's id and name, method, path, job, request id and status; of refused requests too, and of no reading one."""

    async def main(client: httpx.AsyncClient, state: Any) -> None:
        made = (await client.post("/v1/api_keys", json={"name": "ann", "scopes": ["train"]})).json()
        ann = {"authorization": f"Bearer {made['key']}"}
        created = await client.post(JOBS, json=JOB, headers={**ann, "x-request-id": "of-ann"})
        job = created.json()["id"]
        await client.get(JOBS, headers=ann)
        for verb, headers in (("cancel", ann), ("cancel", {"authorization": "Bearer nobody"})):
            await client.post(f"{JOBS}/{job}/{verb}", headers=headers)
        await client.post(f"{JOBS}/{job}/pause", headers=ann)
        await client.post("/v1/api_keys", json={"name": "more", "scopes": ["admin"]}, headers=ann)
        await client.post("/v1/rewards", json={"name": "x", "url": "http://elsewhere:1", "key": "a-secret-of-theirs"})
        await client.put("/nowhere")
        found = await entries(client)
        told = [
            (each["caller_name"], each["method"], each["path"], each["status"], each["job_id"]) for each in found[::-1]
        ]
        assert told == [
            ("DIPOLE_API_KEY", "POST", "/v1/api_keys", 200, None),
            ("ann", "POST", JOBS, 200, job),
            ("ann", "POST", f"{JOBS}/{job}/cancel", 200, job),
            ("anonymous", "POST", f"{JOBS}/{job}/cancel", 401, job),
            ("ann", "POST", f"{JOBS}/{job}/pause", 409, job),
            ("ann", "POST", "/v1/api_keys", 403, None),
            ("DIPOLE_API_KEY", "POST", "/v1/rewards", 422, None),
            ("DIPOLE_API_KEY", "PUT", "/nowhere", 404, None),
        ]
        assert {each["caller"] for each in found if each["caller_name"] == "ann"} == {made["id"]}
        assert [each["request_id"] for each in found if each["path"] == JOBS] == ["of-ann"]
        text = json.dumps(found)
        assert not [secret for secret in (made["key"], ADMIN_KEY, "a-secret-of-theirs") if secret in text]
        assert [each["status"] for each in await entries(client, job_id=job)] == [409, 401, 200, 200]
        first = (await client.get("/v1/audit", params={"limit": 3})).json()
        assert first["has_more"]
        rest = await entries(client, after=first["last_id"])
        assert [*first["data"], *rest] == found
        assert (await client.get("/v1/audit", headers=ann)).status_code == 403
        assert (await client.get("/v1/audit", params={"after": "audit-x"})).status_code == 422

    run_app(main, api_key=ADMIN_KEY)


def test_whoever_has_no_key_cannot_fill_the_log(run_app: Callable[..., None]) -> None:
    """Of requests without a valid key so many a minute are kept, and all of those with one."""

    async def main(client: httpx.AsyncClient, state: Any) -> None:
        for _ in range(audit.REFUSED_LIMIT.amount + 40):
            await client.post(JOBS, headers={"authorization": "Bearer nobody"})
        await client.post(JOBS, json={})
        with state.database.reading() as session:
            callers = session.scalars(select(AuditRow.caller)).all()
        assert callers.count("anonymous") <= 2 * audit.REFUSED_LIMIT.amount, "the minute may have changed once"
        assert callers[-1] == "DIPOLE_API_KEY"

    run_app(main, api_key=ADMIN_KEY)


def test_a_key_that_asks_too_often_cannot_fill_the_log(run_app: Callable[..., None], redis_url: str) -> None:
    """Of what is answered 429 so many a minute are kept of each key, and all of what is not."""
    redis.Redis.from_url(redis_url).flushdb()

    async def main(client: httpx.AsyncClient, state: Any) -> None:
        ann = await headers_of_ann(client)
        for _ in range(audit.REFUSED_LIMIT.amount + 40):
            await client.post("/v1/api_keys", json={}, headers=ann)
        assert (await client.post("/v1/api_keys")).status_code == 429
        with state.database.reading() as session:
            told = [(row.caller_name, row.status) for row in session.scalars(select(AuditRow))]
        assert told[:2] == [("DIPOLE_API_KEY", 200), ("ann", 422)]
        assert 0 < told.count(("ann", 429)) <= 2 * audit.REFUSED_LIMIT.amount, "the minute may have changed once"
        assert told[-1] == ("DIPOLE_API_KEY", 429), "another key's is there"

    run_app(main, api_key=ADMIN_KEY, api_rate_limit="1/hour", redis_url=redis_url)


def test_what_only_asks_has_no_entry_unless_its_caller_may_not(run_app: Callable[..., None]) -> None:
    """The page of endpoints checks each of them every few seconds; plans and images change nothing either."""

    async def main(client: httpx.AsyncClient, state: Any) -> None:
        paths = ("/v1/rewards/none/check", "/v1/fine_tuning/plan", "/v1/images/generations")
        ann = await headers_of_ann(client, scopes=["rate"])
        for path in paths:
            assert (await client.post(path, json={"n": "many"})).status_code in {404, 422}
        for path in paths:
            body = {"model": "tiny-turbo", **({"prompt": "a red square"} if "images" in path else {})}
            await client.post(path, json=body, headers=ann)
            await client.post(path, json=body, headers={"authorization": "Bearer nobody"})
        told = [(each["caller_name"], each["path"], each["status"]) for each in await entries(client)]
        assert told[::-1][1:] == [
            (name, path, status) for path in paths for name, status in (("ann", 403), ("anonymous", 401))
        ]

    run_app(main, api_key=ADMIN_KEY)


def test_old_entries_go_and_no_others(run_app: Callable[..., None]) -> None:
    """DIPOLE_AUDIT_DAYS after they were written, also where there are more than are deleted at once."""

    async def main(client: httpx.AsyncClient, state: Any) -> None:
        log: AuditLog = state.audit_log
        entry = AuditEntry("loopback", "loopback", "POST", "/v1/files", None, "id", 200)
        for _ in range(3):
            log.add_entry(entry)
        with state.database.writing() as session:
            session.execute(update(AuditRow).where(AuditRow.seq < 3).values(created_at=AuditRow.created_at - 3 * 86400))
        assert (log.prune(days=4), log.prune(days=2), log.prune(days=2)) == (0, 2, 0)
        assert [row.seq for row in log.list_entries()[0]] == [3]

    run_app(main)


def test_a_database_that_is_away_costs_the_entry_and_not_the_answer(
    run_app: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is answered as it was, and the entry stands in the process's own log."""

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("away"))

    async def main(client: httpx.AsyncClient, _: Any) -> None:
        monkeypatch.setattr(AuditLog, "add_entry", fail)
        with capture_logs() as logs:
            answer = await client.post("/v1/api_keys", json={"name": "ann", "scopes": ["train"]})
        assert answer.status_code == 200
        (told,) = [each for each in logs if each["event"] == "audit_not_written"]
        assert (told["path"], told["status"], told["caller"]) == ("/v1/api_keys", 200, "loopback")

    run_app(main)


def test_the_command_line_lists_it(api: Any) -> None:
    """`dipole audit`, as a table and as JSON, of a server as anybody starts it."""
    httpx.post(f"{api.url}/v1/api_keys", json={"name": "bob", "scopes": ["train"]}).raise_for_status()
    done = run_dipole("audit", "--api", api.url, "--json", "--limit", "1")
    entry = json.loads(done.stdout)
    assert (entry["caller"], entry["path"], entry["status"]) == ("loopback", "/v1/api_keys", 200)
    assert "POST /v1/api_keys" in run_dipole("audit", "--api", api.url).stdout
