"""One row that cannot be shown says so, and hides no other; nothing that cannot be shown is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from dipole_trainer.database.tables import CheckpointRow, EventRow, FileRow, JobRow, RewardRow
from dipole_trainer.spec import EvalSpec, FeaturesSpec, OptimizerSpec, PromptSpec, RewardSpec, TrainSpec

JOBS = "/v1/fine_tuning/jobs"
REWARD = {"name": "shapes", "url": "http://127.0.0.1:9"}
JOB: dict[str, Any] = {"prompts": [{"prompt": "a red square"}], "rewards": [REWARD], "steps": 4, "allow_unready": True}
Client = httpx.AsyncClient
RunApp = Callable[..., None]


@pytest.mark.parametrize(("lr", "multiplier"), [(1e-300, 1e-300), (1e300, 1e300), (5e-324, 0.1), (1e-4, 1e-320)])
def test_a_learning_rate_that_comes_to_nothing_is_refused_and_not_queued(
    run_app: RunApp, lr: float, multiplier: float
) -> None:
    """What is computed from a request is looked at as the request is."""

    async def test(client: Client, state: Any) -> None:
        good = (await client.post(JOBS, json=JOB)).json()["id"]
        body = {**JOB, "optimizer": {"lr": lr}, "hyperparameters": {"learning_rate_multiplier": multiplier}}
        answer = await client.post(JOBS, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "hyperparameters.learning_rate_multiplier"
        listed = (await client.get(JOBS)).json()
        assert [job["id"] for job in listed["data"]] == [good]

    run_app(test)


@pytest.mark.parametrize(
    "part",
    [
        {"optimizer": OptimizerSpec().model_copy(update={"lr": 0.0})},
        {"evaluation": EvalSpec().model_copy(update={"prompts": tuple(PromptSpec(prompt="x") for _ in range(2001))})},
        {"features": FeaturesSpec().model_copy(update={"pool": 0})},
        {"rewards": (RewardSpec(name="a").model_copy(update={"timeout_s": -1.0}),)},
    ],
)
def test_a_spec_is_made_of_parts_that_were_looked_at(part: dict[str, Any]) -> None:
    """pydantic's `model_copy` checks nothing; whatever such a copy becomes part of does."""
    given = {"prompts": (PromptSpec(prompt="x"),), "rewards": (RewardSpec(name="a"),), **part}
    with pytest.raises(ValueError, match=next(iter(part))):
        TrainSpec(**given)


BAD_SUMMARIES: list[Any] = [
    {},
    {"candidates": "many"},
    [],
    None,
    {"optimizer": {"lr": 0}},
    {"method": {"type": "of tomorrow"}},
    {"id": "another"},
]


@pytest.mark.parametrize("bad", BAD_SUMMARIES)
def test_a_job_that_cannot_be_shown_shows_that_and_hides_no_other(run_app: RunApp, bad: Any) -> None:
    """In lists and alone, with a sentence; it can be paused, resumed and cancelled as any job."""

    async def test(client: Client, state: Any) -> None:
        ids = [(await client.post(JOBS, json=JOB)).json()["id"] for _ in range(3)]
        with state.database.writing() as session:
            row = session.scalar(sa.select(JobRow).where(JobRow.id == ids[1]))
            changed = {**row.summary, **bad} if isinstance(bad, dict) and bad else bad
            session.execute(
                sa.text("UPDATE jobs SET summary = :s WHERE id = :i"), {"s": json.dumps(changed), "i": ids[1]}
            )
        listed = (await client.get(JOBS)).json()
        assert [job["id"] for job in listed["data"]] == ids[::-1]
        assert (listed["first_id"], listed["last_id"]) == (ids[2], ids[0])
        assert [job["error"] is None for job in listed["data"]] == [True, False, True]
        shown = (await client.get(f"{JOBS}/{ids[1]}")).json()
        assert shown == listed["data"][1]
        assert (shown["object"], shown["status"], shown["steps"]) == ("fine_tuning.job", "queued", 4)
        assert (shown["error"]["code"], shown["model"]) == ("unreadable", "tiny-turbo")
        assert "this version cannot show what is stored" in shown["error"]["message"]
        for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            answer = await client.post(f"{JOBS}/{ids[1]}/{verb}")
            assert (answer.status_code, answer.json()["status"]) == (200, status)
        assert (await client.delete("/v1/rewards/none")).status_code == 404

    run_app(test)


def test_a_bad_row_of_any_kind_hides_no_other(run_app: RunApp) -> None:
    """Rewards, events, checkpoints and files of another version, or damaged by hand."""

    async def test(client: Client, state: Any) -> None:
        job = (await client.post(JOBS, json=JOB)).json()["id"]
        await client.post("/v1/rewards", json={**REWARD, "name": "good"})
        await client.post("/v1/rewards", json={**REWARD, "name": "odd"})
        for number in range(2):
            upload = {"file": ("p.jsonl", b'{"prompt": "%d"}\n' % number)}
            await client.post("/v1/files", files=upload, data={"purpose": "fine-tune"})
        with state.database.writing() as session:
            for step in (1, 2):
                row = CheckpointRow(id=f"ftckpt-{step}", job_id=job, step=step, path="x", metrics={}, created_at=0.0)
                session.add(row)
            session.flush()
            session.execute(sa.update(RewardRow).where(RewardRow.name == "odd").values(options=["a list"]))
            session.execute(sa.update(EventRow).where(EventRow.kind == "created").values(data="a text"))
            session.execute(sa.update(CheckpointRow).where(CheckpointRow.step == 1).values(metrics=[1]))
            session.execute(sa.update(FileRow).where(FileRow.seq == 2).values(kind="films"))
        for path, odd in (
            ("/v1/rewards", "odd"),
            (f"{JOBS}/{job}/events", "1"),
            (f"{JOBS}/{job}/checkpoints", "ftckpt-1"),
            ("/v1/files", None),
        ):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            unreadable = [
                each for each in answer.json()["data"] if (each.get("error") or {}).get("code") == "unreadable"
            ]
            assert len(unreadable) == 1, path
            assert len(answer.json()["data"]) > 1
            assert odd is None or unreadable[0]["id"] == odd

    run_app(test)
