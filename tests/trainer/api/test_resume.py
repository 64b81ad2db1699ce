"""Resuming over REST: paused jobs, and failed ones that have a checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

JOBS = "/v1/fine_tuning/jobs"
JOB: dict[str, Any] = {
    "prompts": [{"prompt": "a red square"}],
    "rewards": [{"name": "shapes", "url": "http://127.0.0.1:9"}],
    "steps": 4,
    "allow_unready": True,
}
RunApp = Callable[..., None]


def test_a_failed_job_is_resumed_where_it_has_a_checkpoint(run_app: RunApp) -> None:
    async def test(client: httpx.AsyncClient, state: Any) -> None:
        for has_checkpoint in (False, True):
            job = (await client.post(JOBS, json=JOB)).json()["id"]
            claim = state.jobs.claim_job("worker", 60)
            if has_checkpoint:
                state.jobs.add_checkpoint(claim, 2, "checkpoint-2", {}, kept=[2])
            state.jobs.finish_job(claim, "failed", error={"code": "internal", "message": "a bug"})
            answer = await client.post(f"{JOBS}/{job}/resume")
            if not has_checkpoint:
                assert answer.status_code == 409
                assert "has failed without a checkpoint to go on from" in answer.json()["detail"]
                continue
            resumed = answer.json()
            assert (resumed["status"], resumed["error"], resumed["finished_at"]) == ("queued", None, None)
            assert (await client.get(f"{JOBS}/{job}/events")).json()["data"][0]["kind"] == "queued"
            assert state.jobs.claim_job("worker", 60).job_id == job

    run_app(test)


def test_a_job_that_waits_for_room_says_so(run_app: RunApp) -> None:
    async def test(client: httpx.AsyncClient, state: Any) -> None:
        job = (await client.post(JOBS, json=JOB)).json()["id"]
        state.jobs.wait_for_storage(state.jobs.claim_job("worker", 60), "no space left")
        shown = (await client.get(f"{JOBS}/{job}")).json()
        assert shown["status"] == "paused"
        assert shown["waiting_for"] == {"code": "storage_unavailable", "message": "no space left", "param": None}
        assert (await client.post(f"{JOBS}/{job}/resume")).json()["waiting_for"] is None

    run_app(test)
