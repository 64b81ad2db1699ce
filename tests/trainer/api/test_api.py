"""The trainer API in-process: shapes, pages, errors that name the field, hostile inputs, the event stream, keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from pydantic import SecretStr
from sqlalchemy import update

from dipole.errors import ConfigurationError, InvalidInput
from dipole.settings import ApiSettings, load_settings
from dipole_trainer.api import event_stream
from dipole_trainer.api.app import create_app
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.database.tables import FileRow
from dipole_trainer.datasets import containers, recordings
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.inventory import Inventory
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE

KEY = "an-admin-key-of-some-length"
PROMPTS = b'{"prompt": "a red square"}\n\n{"prompt": "two blue circles", "metadata": {"tag": "two"}}\n'
JOBS = "/v1/fine_tuning/jobs"
INFO = {
    "name": "shapes", "model": "shapes", "model_revision": "1", "recipe_version": "1", "media_types": ["image/png"],
}  # fmt: skip


def settings(folder: Path, **more: Any) -> ApiSettings:
    return ApiSettings(
        home=folder, database_url=f"sqlite:///{folder}/jobs.db", artifacts_url=f"{folder}/artifacts",
        models_dir=folder / "models", **more,
    )  # fmt: skip


class Server:
    """An app, its stores and a client of it."""

    def __init__(self, app: Any, client: httpx.AsyncClient) -> None:
        self.client = client
        self.state: ApiState = app.state.api

    async def job(self, **more: Any) -> dict[str, Any]:
        return await ok(self.client.post(JOBS, json=body(**more)))

    def add_worker(self) -> None:
        """One that lives and can run what tests create, so that nothing is to be warned of."""
        self.state.workers.publish("worker", Inventory({"tiny-turbo": "tiny"}, {}), [], lease_s=600)

    def claim(self) -> Claim:
        claim = self.state.jobs.claim_job("worker", 60)
        assert claim is not None
        return claim


@asynccontextmanager
async def serve(folder: Path, transport: httpx.BaseTransport | None = None, **more: Any) -> AsyncIterator[Server]:
    ready = httpx.MockTransport(lambda request: httpx.Response(200))
    app = create_app(settings(folder, **more), reward_transport=transport or ready)
    async with app.router.lifespan_context(app):
        asgi = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=asgi, base_url="http://127.0.0.1:8400", timeout=60) as client:
            server = Server(app, client)
            if "api_key" not in more:
                await ok(client.post("/v1/rewards", json={"name": "shapes", "url": "http://127.0.0.1:8401"}))
            yield server


def body(**more: Any) -> dict[str, Any]:
    given = {"prompts": [{"prompt": "a red square"}], "rewards": [{"name": "shapes"}], "steps": 4, **more}
    return {name: value for name, value in given.items() if value is not ...}


async def ok(answer: Awaitable[httpx.Response]) -> dict[str, Any]:
    response = await answer
    assert response.status_code == 200, response.text
    found = response.json()
    assert isinstance(found, dict)
    return found


def named(response: httpx.Response, status: int, field: str) -> None:
    """A problem document of this status that names this field, with the member that OpenAI's clients read."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["errors"][0]["field"] == field
    assert problem["error"]["param"] == field
    assert problem["error"]["message"] == problem["detail"]


Test = Callable[[Server], Awaitable[None]]


def run(folder: Path, test: Test, **more: Any) -> None:
    async def main() -> None:
        async with serve(folder, **more) as server:
            await test(server)

    asyncio.run(main())


# ---- files ----------------------------------------------------------------------------------------------------------


def upload(client: httpx.AsyncClient, data: bytes, name: str = "p.jsonl", **more: str) -> Awaitable[httpx.Response]:
    return client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "fine-tune", **more})


def test_a_file_is_kept_byte_for_byte_until_it_is_deleted(tmp_path: Path) -> None:
    """Upload, list, retrieve, content, delete; empty lines do not count as prompts."""

    async def test(server: Server) -> None:
        file = await ok(upload(server.client, PROMPTS, name="../../étrange\n.jsonl"))
        assert (file["object"], file["lines"], file["bytes"], file["status"]) == ("file", 2, len(PROMPTS), "processed")
        assert [each["id"] for each in (await ok(server.client.get("/v1/files")))["data"]] == [file["id"]]
        assert await ok(server.client.get(f"/v1/files/{file['id']}")) == file
        content = await server.client.get(f"/v1/files/{file['id']}/content")
        assert content.content == PROMPTS
        assert (await ok(server.client.delete(f"/v1/files/{file['id']}")))["deleted"] is True
        for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
            assert (await server.client.get(path)).status_code == 404
        assert list((tmp_path / "artifacts").rglob("*.jsonl")) == []

    run(tmp_path, test)


BROKEN_LINES = [
    b"not json",
    b"[1]",
    b'{"prompt": ""}',
    b'{"promt": "x"}',
    b'{"prompt": 1}',
    b'{"prompt": "x", "metadata": [1]}',
    b'{"prompt": "x", "extra": 1}',
    b'{"prompt": "nul \\u0000"}',
    b'{"prompt": "x", "metadata": {"a": ["nul \\u0000"]}}',
    b'{"prompt": "lone \\ud800 surrogate"}',
    b'{"prompt": "x", "metadata": {"a": NaN}}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "' + b"x" * 10_001 + b'"}',
    b'{"prompt": "x", "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """The whole file is refused with the number of its first broken line, and nothing is kept."""

    async def test(server: Server) -> None:
        for line in BROKEN_LINES:
            response = await upload(server.client, b'{"prompt": "fine"}\n' + line + b"\n")
            named(response, 422, "file[2]")
            assert response.json()["detail"].startswith("line 2: ")
        assert (await ok(server.client.get("/v1/files")))["data"] == []

    run(tmp_path, test)


def test_files_are_bounded_while_they_stream(tmp_path: Path) -> None:
    """Too many bytes are a 413, announced or not; a giant line, an empty file and another purpose are 4xx."""

    async def test(server: Server) -> None:
        async def endless() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(400):
                yield b'{"prompt": "x"}\n' * 1000

        assert (await upload(server.client, b"x" * 3_000_000)).status_code == 413
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert (await server.client.post("/v1/files", content=endless(), headers=headers)).status_code == 413
        named(await upload(server.client, b'{"prompt": "' + b"x" * 1_100_000), 413, "file[1]")
        named(await upload(server.client, b"\n \n"), 422, "file")
        named(await upload(server.client, PROMPTS, purpose="assistants"), 422, "purpose")
        named(await server.client.post("/v1/files", data={"purpose": "fine-tune"}), 422, "file")
        assert list((tmp_path / "artifacts").rglob("*.jsonl")) == []

    run(tmp_path, test, api_max_file_bytes=2_000_000)


def test_a_second_part_of_a_name_is_refused(tmp_path: Path) -> None:
    """One of them would be taken, and the other left without a word."""

    async def test(server: Server) -> None:
        two = [("file", ("a.jsonl", PROMPTS)), ("file", ("b.jsonl", PROMPTS))]
        post = server.client.post
        named(await post("/v1/files", files=two, data={"purpose": "fine-tune"}), 422, "file")
        one = {"file": ("a.jsonl", PROMPTS)}
        named(await post("/v1/files", files=one, data={"purpose": ["fine-tune"] * 2}), 422, "purpose")
        assert (await ok(server.client.get("/v1/files")))["data"] == []

    run(tmp_path, test)


def test_a_file_goes_when_its_caller_said(tmp_path: Path) -> None:
    """Found by nobody from then on, its bytes gone with the next upload; pairs in use stay until their job ends."""

    async def test(server: Server) -> None:
        expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        prompts, used = [await ok(upload(server.client, data, **expiry)) for data in (PROMPTS, PAIRS)]
        assert prompts["expires_at"] == prompts["created_at"] + 3600
        job = await server.job(training_file=used["id"], prompts=..., rewards=..., steps=1)
        kept = await ok(upload(server.client, PROMPTS))
        assert kept["expires_at"] is None
        with server.state.database.writing() as session:
            session.execute(update(FileRow).values(expires_at=FileRow.expires_at - 3601))
        assert [each["id"] for each in (await ok(server.client.get("/v1/files")))["data"]] == [kept["id"]]
        assert (await server.client.get(f"/v1/files/{prompts['id']}")).status_code == 404
        named(await server.client.post(JOBS, json=body(prompts=..., training_file=prompts["id"])), 422, "training_file")
        stored = tmp_path / "artifacts/files"
        await ok(upload(server.client, PROMPTS))
        assert not (stored / f"{prompts['id']}.jsonl").exists()
        assert (stored / f"{used['id']}.jsonl").exists()
        await ok(server.client.post(f"{JOBS}/{job['id']}/cancel"))
        await ok(upload(server.client, PROMPTS))
        assert not (stored / f"{used['id']}.jsonl").exists()

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("expiry", "field"),
    [
        ({"expires_after[seconds]": "3600"}, "expires_after"),
        ({"expires_after[anchor]": "created_at"}, "expires_after"),
        ({"expires_after[anchor]": "last_used", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"}, "expires_after[seconds]"),
    ],
)
def test_an_expiry_that_means_nothing_is_refused(expiry: dict[str, str], field: str, tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        named(await upload(server.client, PROMPTS, **expiry), 422, field)

    run(tmp_path, test)


def test_an_installation_that_cannot_read_a_file_does_not_blame_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, and the sentence says whose fault it is; JSON lines are taken all the same."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/pyarrow.py").write_text("raise ImportError('libarrow.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path / "broken")

    async def test(server: Server) -> None:
        table = pa.table({"prompt": ["a"], "chosen": [b""], "rejected": [b""]})
        answer = await upload(server.client, parquet_of(table))
        assert answer.status_code == 500
        assert "the file was not looked at" in answer.json()["detail"]
        assert "libarrow.so: no such file" in answer.json()["detail"]
        await ok(upload(server.client, PROMPTS))

    run(tmp_path, test)


# ---- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_from_files_has_openai_s_shape_and_ours(tmp_path: Path) -> None:
    """training_file gives prompts, validation_file evaluation prompts; method and hyperparameters are obeyed."""

    async def test(server: Server) -> None:
        file = await ok(upload(server.client, PROMPTS))
        job = await server.job(
            prompts=..., steps=..., training_file=file["id"], validation_file=file["id"], suffix="mine", seed=3,
            metadata={"team": "a"}, method={"type": "drpo", "drpo": {"positives": 2, "negatives": 3}}, candidates=6,
            hyperparameters={"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.0},
        )  # fmt: skip
        assert (job["object"], job["status"], job["model"]) == ("fine_tuning.job", "queued", "tiny-turbo")
        assert (job["training_file"], job["validation_file"]) == (file["id"], file["id"])
        assert (job["seed"], job["metadata"], job["suffix"]) == (3, {"team": "a"}, "mine")
        assert job["method"]["drpo"]["negatives"] == 3
        assert (job["steps"], job["prompts_per_step"], job["optimizer"]["lr"]) == (2, 4, 2e-4)
        spec = server.state.jobs.load_spec(job["id"])
        assert [prompt.prompt for prompt in spec.prompts] == ["a red square", "two blue circles"]
        assert spec.evaluation.prompts == spec.prompts
        assert job["evaluation"]["prompt_count"] == 2
        await server.client.delete(f"/v1/files/{file['id']}")
        assert (await ok(server.client.get(f"{JOBS}/{job['id']}"))) == job

    run(tmp_path, test)


def test_inline_prompts_become_a_file(tmp_path: Path) -> None:
    """Every job has a training_file whose content can be fetched."""

    async def test(server: Server) -> None:
        job = await server.job()
        content = await server.client.get(f"/v1/files/{job['training_file']}/content")
        assert content.content == b'{"prompt":"a red square"}\n'

    run(tmp_path, test)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stepps": 3}, "stepps"),
    ({"method": {"type": "drpo", "drpo": {"positives": 2, "postives": 1}}}, "method.drpo.postives"),
    ({"method": {"type": "ppo"}}, "method.type"),
    (
        {"method": {"type": "drpo", "drpo": {"positives": 5, "negatives": 4}}, "candidates": 8},
        "method.drpo.positives",
    ),
    ({"candidates": 65}, "candidates"),
    ({"candidates": 64, "resolution": 1184}, "candidates"),
    (
        {"resolution": 1184, "evaluation": {"prompts": [{"prompt": "a"}], "images_per_prompt": 64}},
        "evaluation.images_per_prompt",
    ),
    ({"prompts_per_step": 1024, "max_staleness": 16, "candidates": 64}, "max_staleness"),
    ({"prompts_per_step": 1024, "resolution": 1024}, "prompts_per_step"),
    ({"hyperparameters": {"batch_size": 1024}, "resolution": 1024}, "prompts_per_step"),
    ({"model": "gpt-4o"}, "model"),
    ({"model": "../../etc"}, "model"),
    ({"model": "/etc"}, "model"),
    ({"model": "no-index"}, "model"),
    ({"rewards": [{"name": "unknown"}]}, "rewards[0].name"),
    ({"rewards": [{"name": "shapes"}, {"name": "x", "url": "http://evil.example"}]}, "rewards[1].url"),
    ({"rewards": [{"name": "shapes", "weight": 0}]}, "rewards"),
    ({"rewards": [{"name": "shapes"}, {"name": "shapes"}]}, "rewards"),
    ({"rewards": []}, "rewards"),
    ({"rewards": ...}, "rewards"),
    ({"prompts": ...}, "training_file"),
    ({"training_file": "file-x"}, "prompts"),
    ({"prompts": ..., "training_file": "file-x"}, "training_file"),
    ({"validation_file": "../x"}, "validation_file"),
    ({"prompts": [{"prompt": "a\x00b"}]}, "prompts[0].prompt"),
    ({"prompts": [{"prompt": "a", "metadata": {"k": "\x00"}}]}, "prompts[0].metadata.k"),
    ({"prompts": [{"prompt": "a"}, {"prompt": "a", "metadata": {"k": ["\ud83d"]}}]}, "prompts[1].metadata.k[0]"),
    ({"prompts": [{"prompt": "a", "metadata": {"\ud83d": 1}}]}, "prompts[0].metadata"),
    ({"evaluation": {"prompts": [{"prompt": "a", "metadata": {"k": "\udc00"}}]}}, "evaluation.prompts[0].metadata.k"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"integrations": [{"type": "wandb"}]}, "integrations"),
    ({"hyperparameters": {"n_epochs": 2}}, "hyperparameters.n_epochs"),
    ({"steps": 0}, "steps"),
    ({"optimizer": {"lr": 1e400}}, "optimizer.lr"),
    ({"optimizer": {"betas": [-0.1, 0.999]}}, "optimizer.betas[0]"),
    ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas[1]"),
    *[
        ({"features": {"type": kind, "weights": "x"}}, "features.weights")
        for kind in ("latents", "tiny_labelled", "teacher_unet")
    ],
    ({"features": {"type": "latents", "revision": "x"}}, "features.revision"),
    *[({"features": {name: 7}}, f"features.{name}") for name in ("timestep", "noise", "pool")],
    ({"features": {"type": "clip", "noise": 0}}, "features.noise"),
    ({"evaluation": {"every": 2}}, "evaluation.every"),
    ({"seed": -1}, "seed"),
]


def test_a_job_that_cannot_work_is_refused_by_field(tmp_path: Path) -> None:
    """Each mistake is a 422 that names its field, and makes no job; what is like it and right makes one."""
    (tmp_path / "models/no-index").mkdir(parents=True)

    async def test(server: Server) -> None:
        headers = {"content-type": "application/json"}
        for change, field in REFUSED:
            named(await server.client.post(JOBS, content=json.dumps(body(**change)), headers=headers), 422, field)
        assert (await ok(server.client.get(JOBS)))["data"] == []
        await server.job(features={"type": "teacher_unet", "timestep": 7, "noise": 7, "pool": 7})
        await server.job(features={"type": "clip", "weights": "x", "revision": "x"}, optimizer={"betas": [0, 0.99]})
        file = await ok(upload(server.client, PROMPTS))
        await server.job(evaluation={"every": 2}, validation_file=file["id"])

    run(tmp_path, test)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"prompts": "' + b"\xff" + b'"}', b'{"a":' * 50_000]
)
def test_a_body_that_is_no_job_is_a_4xx(tmp_path: Path, content: bytes) -> None:
    """Broken, deep or binary JSON is refused, and the server answers the next request."""

    async def test(server: Server) -> None:
        headers = {"content-type": "application/json"}
        response = await server.client.post(JOBS, content=content, headers=headers)
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"
        await server.job()

    run(tmp_path, test)


def test_a_large_body_and_a_lone_surrogate_are_refused(tmp_path: Path) -> None:
    """The bound on other bodies is their own; text that is no Unicode never reaches the database."""

    async def test(server: Server) -> None:
        assert (await server.client.post(JOBS, json=body(suffix="x" * 20_000))).status_code == 413
        broken = b'{"prompts": [{"prompt": "\\ud800"}], "rewards": [{"name": "shapes"}]}'
        headers = {"content-type": "application/json"}
        named(await server.client.post(JOBS, content=broken, headers=headers), 422, "prompts[0].prompt")

    run(tmp_path, test, api_max_body_bytes=10_000)


def test_a_model_is_a_known_name_or_a_folder_beside(tmp_path: Path) -> None:
    """A folder with a model_index.json under DIPOLE_MODELS_DIR may be named."""
    (tmp_path / "models/sd-turbo").mkdir(parents=True)
    (tmp_path / "models/sd-turbo/model_index.json").write_text("{}")

    async def test(server: Server) -> None:
        assert (await server.job(model="sd-turbo"))["model"] == "sd-turbo"

    run(tmp_path, test)


def test_a_repeated_create_makes_one_job(tmp_path: Path) -> None:
    """Idempotency-Key: the same body returns the first job, another is a 409."""

    async def test(server: Server) -> None:
        headers = {"idempotency-key": "k-1"}
        first = await ok(server.client.post(JOBS, json=body(), headers=headers))
        assert (await ok(server.client.post(JOBS, json=body(), headers=headers)))["id"] == first["id"]
        assert (await server.client.post(JOBS, json=body(steps=5), headers=headers)).status_code == 409
        assert len((await ok(server.client.get(JOBS)))["data"]) == 1
        assert len((await ok(server.client.get("/v1/files")))["data"]) == 1

    run(tmp_path, test)


def test_jobs_and_events_page_like_openai_s(tmp_path: Path) -> None:
    """Newest first, `after` is the last id seen, `has_more` says whether to go on; unknown queries are refused."""

    async def test(server: Server) -> None:
        server.add_worker()
        ids = [(await server.job())["id"] for _ in range(3)]
        page = await ok(server.client.get(JOBS, params={"limit": 2}))
        assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:0:-1], True)
        rest = await ok(server.client.get(JOBS, params={"limit": 2, "after": page["last_id"]}))
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[:1], False)
        events = await ok(server.client.get(f"{JOBS}/{ids[0]}/events", params={"limit": 1}))
        assert [event["kind"] for event in events["data"]] == ["queued"]
        older = await ok(server.client.get(f"{JOBS}/{ids[0]}/events", params={"after": events["last_id"]}))
        assert [event["kind"] for event in older["data"]] == ["created"]
        for path, query, field in (
            (JOBS, {"limit": "0"}, "limit"),
            (JOBS, {"limt": "1"}, "limt"),
            (f"{JOBS}/{ids[0]}/events", {"after": "ftevent-x"}, "after"),
            (f"{JOBS}/{ids[0]}/events", {"after": "9" * 30}, "after"),
        ):
            named(await server.client.get(path, params=query), 422, field)
        assert (await server.client.get(JOBS, params={"after": "ftjob-x"})).status_code == 404
        for path in ("", "/events", "/checkpoints", "/stream", "/artifacts", "/rankings"):
            assert (await server.client.get(f"{JOBS}/ftjob-none{path}")).status_code == 404

    run(tmp_path, test)


def test_pause_resume_cancel_follow_the_job_s_state(tmp_path: Path) -> None:
    """What the state does not allow is a 409 in a sentence."""

    async def test(server: Server) -> None:
        url = f"{JOBS}/{(await server.job())['id']}"
        assert (await ok(server.client.post(f"{url}/pause")))["status"] == "paused"
        assert (await ok(server.client.post(f"{url}/resume")))["status"] == "queued"
        claim = server.claim()
        paused = await ok(server.client.post(f"{url}/pause"))
        assert (paused["status"], paused["desired"]) == ("running", "pause")
        server.state.jobs.wait_for_reward(claim, "shapes", "timeout")
        assert (await ok(server.client.get(url)))["status"] == "paused"
        assert (await ok(server.client.post(f"{url}/cancel")))["status"] == "cancelled"
        refused = await server.client.post(f"{url}/resume")
        assert refused.status_code == 409
        assert "cancelled" in refused.json()["error"]["message"]

    run(tmp_path, test)


def test_a_waiting_job_says_for_what(tmp_path: Path) -> None:
    """`waiting_for` names the reward and the reason; a failed job's `error` likewise; a finished one its model."""

    async def test(server: Server) -> None:
        waiting, failing, done = [(await server.job(suffix="s"))["id"] for _ in range(3)]
        server.state.jobs.wait_for_reward(server.claim(), "shapes", "timeout: 60 s")
        found = await ok(server.client.get(f"{JOBS}/{waiting}"))
        assert found["waiting_for"] == {"code": "reward_unavailable", "message": "timeout: 60 s", "param": "shapes"}
        server.state.jobs.finish_job(
            server.claim(), "failed", error={"code": "internal", "message": "no", "param": None}
        )
        assert (await ok(server.client.get(f"{JOBS}/{failing}")))["error"]["message"] == "no"
        server.state.jobs.finish_job(server.claim(), "succeeded")
        finished = await ok(server.client.get(f"{JOBS}/{done}"))
        assert finished["fine_tuned_model"] == f"ft:tiny-turbo:dipole:s:{done[6:14]}"
        assert finished["finished_at"] >= finished["created_at"]

    run(tmp_path, test)


# ---- the event stream -----------------------------------------------------------------------------------------------


async def read_stream(
    state: ApiState, job_id: str, cursor: int = 0, ping_s: float = 60
) -> AsyncIterator[tuple[int, str]]:
    """(id, kind) as they come, (-1, "ping") for a comment; from its source: httpx's ASGI transport cannot stream."""
    async for chunk in event_stream.stream_events(state, job_id, cursor, ping_s=ping_s):
        lines = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n"))
        if "" in lines:
            yield -1, lines[""]
        else:
            assert json.loads(lines["data"])["kind"] == lines["event"]
            yield int(lines["id"]), lines["event"]


def test_the_stream_gives_what_was_missed_then_what_comes_then_ends(tmp_path: Path) -> None:
    """A caller that reconnects with Last-Event-ID gets every event once, in order, and the end with the job's end."""

    async def test(server: Server) -> None:
        server.add_worker()
        job_id = (await server.job())["id"]
        claim = server.claim()
        seen: list[tuple[int, str]] = []

        async def follow(cursor: int, enough: int) -> None:
            async for number, kind in read_stream(server.state, job_id, cursor):
                if number >= 0:
                    seen.append((number, kind))
                if len(seen) == enough:
                    return

        await follow(0, 2)
        later = asyncio.create_task(follow(seen[-1][0], 99))
        await asyncio.sleep(0.3)
        for step in (1, 2):
            await asyncio.to_thread(server.state.jobs.append_event, claim, "step", {"step": step})
        await asyncio.to_thread(server.state.jobs.finish_job, claim, "succeeded")
        await asyncio.wait_for(later, 30)
        assert [kind for _, kind in seen] == ["created", "queued", "running", "step", "step", "succeeded"]
        assert [number for number, _ in seen] == sorted({number for number, _ in seen})

    run(tmp_path, test)


def test_an_idle_stream_pings(tmp_path: Path) -> None:
    """Silence is broken by comments, so that neither side takes the other for dead."""

    async def test(server: Server) -> None:
        server.add_worker()
        job_id = (await server.job())["id"]
        events = read_stream(server.state, job_id, ping_s=0.2)
        found = [await asyncio.wait_for(anext(events), 30) for _ in range(5)]
        assert [kind for _, kind in found] == ["ping", "created", "queued", "ping", "ping"]

    run(tmp_path, test)


def test_the_stream_s_headers_and_its_end(tmp_path: Path) -> None:
    """No proxy buffers it; after the last event of an ended job there is nothing more: 204."""

    async def test(server: Server) -> None:
        job_id = (await server.job())["id"]
        await server.client.post(f"{JOBS}/{job_id}/cancel")
        response = await server.client.get(f"{JOBS}/{job_id}/stream")
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        last = [line for line in response.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
        again = await server.client.get(f"{JOBS}/{job_id}/stream", headers={"last-event-id": last})
        assert again.status_code == 204
        for bad in ("x", "-1", "9" * 30):
            refused = await server.client.get(f"{JOBS}/{job_id}/stream", headers={"last-event-id": bad})
            assert refused.status_code == 422

    run(tmp_path, test)


# ---- outputs --------------------------------------------------------------------------------------------------------


def adapter() -> bytes:
    """A safetensors file of one tensor, as PEFT names it."""
    header = {"down.to_q.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    return len(text).to_bytes(8, "little") + text + b"12345678"


def test_a_checkpoint_downloads_as_a_diffusers_lora(tmp_path: Path) -> None:
    """The zip holds the same numbers under diffusers' names, with rank and alpha in the metadata."""

    async def test(server: Server) -> None:
        job_id = (await server.job())["id"]
        lora = tmp_path / "artifacts/jobs" / job_id / "checkpoint-2/unet_lora"
        lora.mkdir(parents=True)
        (lora / "adapter_model.safetensors").write_bytes(adapter())
        (lora / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}))
        claim = server.claim()
        server.state.jobs.add_checkpoint(claim, 1, "checkpoint-1", {}, kept=[1])
        server.state.jobs.add_checkpoint(claim, 2, "checkpoint-2", {"train_loss": 0.5}, kept=[1, 2])
        newest, gone = (await ok(server.client.get(f"{JOBS}/{job_id}/checkpoints")))["data"]
        assert (newest["step_number"], newest["metrics"]) == (2, {"train_loss": 0.5, "step": 2})
        response = await server.client.get(urljoin(f"{server.client.base_url}/", newest["download"]))
        assert response.headers["content-type"] == "application/zip"
        data = zipfile.ZipFile(io.BytesIO(response.content)).read(LORA_WEIGHTS_FILE)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert data[8 + length :] == b"12345678"
        assert header.keys() == {"unet.down.to_q.lora_A.weight", "__metadata__"}
        assert json.loads(header["__metadata__"]["lora_adapter_metadata"])["unet.lora_alpha"] == 8
        assert (await server.client.get(gone["download"])).status_code == 404
        other = (await server.job())["id"]
        assert (await server.client.get(f"{JOBS}/{other}/checkpoints/{newest['id']}/download")).status_code == 404

    run(tmp_path, test)


def test_artifacts_are_a_job_s_own_files_and_nothing_else(tmp_path: Path) -> None:
    """Samples and reports are listed and served; no path, link or encoding leads out of the job's folder."""

    async def test(server: Server) -> None:
        job_id = (await server.job())["id"]
        other = (await server.job())["id"]
        root = tmp_path / "artifacts/jobs" / job_id
        for name in ("samples/step-1.png", "evaluation/step-1.json", "export/README.md", "checkpoint-1/secret.bin"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"content")
        (root / "samples/page.html").write_bytes(b"<script>")
        (root / ".hidden").write_bytes(b"x")
        (root / "samples/link.png").symlink_to("/etc/passwd")
        (root / "samples/up").symlink_to(tmp_path)
        (tmp_path / "artifacts/jobs" / other).mkdir()
        (tmp_path / "artifacts/jobs" / other / "a.json").write_bytes(b"{}")
        listed = (await ok(server.client.get(f"{JOBS}/{job_id}/artifacts")))["data"]
        assert {"samples/step-1.png", "evaluation/step-1.json", "export/README.md"} <= {each["path"] for each in listed}
        assert not any("checkpoint-1" in each["path"] or "hidden" in each["path"] for each in listed)
        image = await server.client.get(f"{JOBS}/{job_id}/artifacts/samples/step-1.png")
        assert (image.content, image.headers["content-type"]) == (b"content", "image/png")
        page = await server.client.get(f"{JOBS}/{job_id}/artifacts/samples/page.html")
        assert page.headers["content-type"] == "application/octet-stream"
        assert page.headers["content-disposition"].startswith("attachment")
        assert page.headers["x-content-type-options"] == "nosniff"
        for path in (
            "samples/link.png", "samples/up/jobs.db", "samples", "none.png", ".hidden", "checkpoint-1/secret.bin",
            f"../{other}/a.json", f"%2e%2e/{other}/a.json", f"..%2f{other}%2fa.json", f"samples/../../{other}/a.json",
            "/etc/passwd", "%2fetc%2fpasswd", "samples%5c..%5cx", "samples//step-1.png",
            "samples/step-1.png%00", "x" * 1025,
        ):  # fmt: skip
            response = await server.client.get(f"{JOBS}/{job_id}/artifacts/{path}")
            assert response.status_code in (404, 422), (path, response.status_code)

    run(tmp_path, test)


# ---- rewards and keys -----------------------------------------------------------------------------------------------


def test_a_reward_is_registered_replaced_and_forgotten_and_its_key_never_shown(tmp_path: Path) -> None:
    """No answer of the API contains the key."""

    async def test(server: Server) -> None:
        given = {"name": "judge", "url": "http://127.0.0.1:9/", "key": "very-secret", "description": "d"}
        answers = [
            await server.client.post("/v1/rewards", json=given),
            await server.client.get("/v1/rewards"),
            await server.client.get("/v1/rewards/judge"),
            await server.client.post("/v1/rewards", json={**given, "url": "http://evil.example"}),
            await server.client.post("/v1/rewards", json={**given, "key": ["very-secret"]}),
            await server.client.post("/v1/rewards", json={**given, "ky": "very-secret"}),
            await server.client.get("/openapi.json"),
        ]
        assert not any("very-secret" in answer.text for answer in answers)
        found = await ok(server.client.get("/v1/rewards/judge"))
        assert (found["url"], found["has_key"]) == ("http://127.0.0.1:9", True)
        moved = await ok(server.client.post("/v1/rewards", json={"name": "judge", "url": "http://localhost:10"}))
        assert (moved["url"], moved["has_key"]) == ("http://localhost:10", False)
        job = await server.job(rewards=[{"name": "judge"}])
        assert (await server.client.delete("/v1/rewards/judge")).status_code == 409
        await server.client.post(f"{JOBS}/{job['id']}/cancel")
        await ok(server.client.delete("/v1/rewards/judge"))
        assert (await server.client.get("/v1/rewards/judge")).status_code == 404

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        ({"/readyz": (200, "{}"), "/v1/info": (200, json.dumps(INFO))}, None),
        ({"/readyz": (503, "")}, "GET /readyz answered 503"),
        ({"/readyz": (302, "")}, "GET /readyz answered 302"),
        ({"/readyz": (200, ""), "/v1/info": (404, "")}, "answered 404"),
        ({"/readyz": (200, ""), "/v1/info": (200, "<html>")}, "invalid RewardInfo"),
        ({"/readyz": (200, ""), "/v1/info": (200, "x" * 5_000_000)}, "more than 4194304 bytes"),
        ({"/readyz": (200, ""), "/v1/info": (200, "[" * 100_000)}, "invalid RewardInfo"),
        ({}, "ConnectError: refused"),
    ],
)
def test_a_check_says_what_is_wrong_with_an_endpoint(
    tmp_path: Path, answers: dict[str, Any], wrong: str | None
) -> None:
    """Nothing an endpoint answers breaks the API, and a redirect is not followed."""

    def endpoint(request: httpx.Request) -> httpx.Response:
        if request.url.path not in answers:
            raise httpx.ConnectError("refused")
        status, text = answers[request.url.path]
        headers = {"content-type": "application/json"} | ({"location": "http://evil.example"} if status == 302 else {})
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(text.encode()))

    async def test(server: Server) -> None:
        found = await ok(server.client.post("/v1/rewards/shapes/check"))
        assert found["ok"] is (wrong is None)
        assert wrong is None or wrong in found["problem"]

    run(tmp_path, test, transport=httpx.MockTransport(endpoint))


def test_a_check_and_a_registration_survive_hostile_endpoints(tmp_path: Path) -> None:
    """The body of /readyz is never read, however long; an address that cannot be asked is refused and named."""

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("read")

    def endpoint(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, stream=Endless())

    async def test(server: Server) -> None:
        found = await ok(server.client.post("/v1/rewards/shapes/check"))
        assert found["problem"] == "GET /readyz answered 503"
        bad = {"name": "odd", "url": "http://127.0.0.1:1/\x7f"}
        named(await server.client.post("/v1/rewards", json=bad), 422, "url")
        long = await server.client.post(JOBS, json=body(rewards=[{**bad, "url": "http://127.0.0.1/" + "a" * 2048}]))
        named(long, 422, "rewards[0].url")

    run(tmp_path, test, transport=httpx.MockTransport(endpoint))


def test_without_a_key_only_loopback_pages_may_call(tmp_path: Path) -> None:
    """A web page elsewhere reaches 127.0.0.1 through the browser: another Host or Origin is refused."""

    async def test(server: Server) -> None:
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
            assert (await server.client.get(JOBS, headers=headers)).status_code == 403
        for headers in ({"host": "localhost:8400"}, {"host": "[::1]:8400"}, {"origin": "http://localhost:3000"}):
            assert (await server.client.get(JOBS, headers=headers)).status_code == 200

    run(tmp_path, test)


def test_keys_open_what_their_scopes_say(tmp_path: Path) -> None:
    """401 without a key, 403 beyond a key's scopes, health always open; a revoked key is none."""

    async def test(server: Server) -> None:
        admin = {"authorization": f"Bearer {KEY}"}
        assert (await server.client.get(JOBS)).status_code == 401
        assert (await server.client.get(JOBS, headers={"authorization": "Bearer wrong"})).status_code == 401
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await server.client.get(path)).status_code == 200
        made = await ok(server.client.post("/v1/api_keys", json={"name": "a", "scopes": ["train"]}, headers=admin))
        train = {"authorization": f"Bearer {made['key']}"}
        assert (await server.client.get(JOBS, headers=train)).status_code == 200
        given = {"name": "x", "url": "http://127.0.0.1:1"}
        assert (await server.client.post("/v1/rewards", json=given, headers=train)).status_code == 403
        assert (await server.client.get("/v1/api_keys", headers=train)).status_code == 403
        listed = await ok(server.client.get("/v1/api_keys", headers=admin))
        assert (listed["data"][0]["key"], listed["data"][0]["scopes"]) == (None, ["train"])
        rate = await ok(server.client.post("/v1/api_keys", json={"name": "b", "scopes": ["rate"]}, headers=admin))
        refused = await server.client.get(JOBS, headers={"authorization": f"Bearer {rate['key']}"})
        assert refused.status_code == 403
        await ok(server.client.delete(f"/v1/api_keys/{made['id']}", headers=admin))
        assert (await server.client.get(JOBS, headers=train)).status_code == 401

    run(tmp_path, test, api_key=SecretStr(KEY), api_host="0.0.0.0")


def test_an_open_server_without_a_key_refuses_to_start(tmp_path: Path) -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigurationError, match="DIPOLE_API_KEY"):
        create_app(settings(tmp_path, api_host="0.0.0.0"))


@pytest.mark.parametrize("place", ["prompts", "rewards", "evaluation.prompts", "lora.target_modules"])
def test_a_million_wrong_items_are_few_errors(tmp_path: Path, place: str) -> None:
    """Two bytes an item must not become a kilobyte of errors each: the first wrong one ends the reading."""
    outer, _, inner = place.partition(".")
    wrong: Any = [1] * 1_000_000
    sent = body(**{outer: {inner: wrong} if inner else wrong})

    async def test(server: Server) -> None:
        refused = await server.client.post(JOBS, json=sent)
        named(refused, 422, f"{place}[0]")
        assert len(refused.json()["errors"]) <= 2  # and that the list is too short without it

    run(tmp_path, test)


def test_an_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIPOLE_API_KEY="", as a forgotten secret sets it, is a sentence at start on every host, and never an open API."""
    for key in ("", "short", ",", "a-key-of-enough-letters,short"):
        monkeypatch.setenv("DIPOLE_API_KEY", key)
        for host in ("0.0.0.0", "127.0.0.1"):
            with pytest.raises(ConfigurationError, match=r"DIPOLE_API_KEY.*at least 16"):
                load_settings(ApiSettings, api_host=host)


# ---- the app --------------------------------------------------------------------------------------------------------


def test_methods_that_callers_make_up_become_no_metrics(tmp_path: Path) -> None:
    """Each would be kept for as long as the process lives: they are counted together."""

    async def test(server: Server) -> None:
        for method in ("MADEUP1", "MADEUP2"):
            assert (await server.client.request(method, "/livez")).status_code == 405
        metrics = (await server.client.get("/metrics")).text
        assert 'dipole_api_requests_total{method="other",route="/livez",status="405"} 2.0' in metrics
        assert "MADEUP" not in metrics

    run(tmp_path, test)


def test_health_metrics_and_documents(tmp_path: Path) -> None:
    """Metrics count by route and state; every operation is documented with a summary, an example and problem+json."""

    async def test(server: Server) -> None:
        await server.job()
        await server.client.get(f"{JOBS}/ftjob-none")
        metrics = (await server.client.get("/metrics")).text
        assert 'dipole_jobs{state="queued"} 1.0' in metrics
        assert 'route="/v1/fine_tuning/jobs/{job_id}",status="404"' in metrics
        assert "ftjob-none" not in metrics
        document = await ok(server.client.get("/openapi.json"))
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"], (method, path)
                problems = operation["responses"]["default"]["content"]
                assert list(problems) == ["application/problem+json"]
        example = document["components"]["schemas"]["JobRequest"]["examples"][0]
        file = await ok(upload(server.client, PROMPTS))
        await ok(server.client.post("/v1/rewards", json={"name": "colourfulness", "url": "http://127.0.0.1:8402"}))
        await ok(server.client.post(JOBS, json={**example, "training_file": file["id"]}))

    run(tmp_path, test)


def test_the_api_process_never_imports_torch(tmp_path: Path) -> None:
    """Its image has none: neither creating the app nor its documents load torch or diffusers."""
    code = (
        "import sys; from dipole_trainer.api.app import create_app; create_app().openapi();"
        "heavy = ('torch', 'diffusers', 'transformers', 'peft', 'pyarrow');"
        "print([name for name in heavy if name in sys.modules])"
    )
    environment = {
        "DIPOLE_HOME": str(tmp_path), "DIPOLE_DATABASE_URL": f"sqlite:///{tmp_path}/jobs.db",
        "DIPOLE_ARTIFACTS_URL": str(tmp_path / "artifacts"), "PATH": "/usr/bin",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


# ---- pairs ----------------------------------------------------------------------------------------------------------


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8), **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, kind, **more)
    return buffer.getvalue()


def noise(side: int) -> bytes:
    """A PNG that hardly compresses."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def claims(side: int) -> bytes:
    """A small PNG whose header says that it is large."""
    data = bytearray(picture())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pair(prompt: Any = "a red square", **more: Any) -> bytes:
    row = {"prompt": prompt, "chosen": as_text(picture()), "rejected": as_text(picture("WEBP")), **more}
    return json.dumps({name: value for name, value in row.items() if value is not ...}).encode() + b"\n"


PAIRS = pair() + b"\n" + pair(metadata={"rater": 7}) + pair("two circles")


def parquet_of(table: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def test_a_pairs_file_is_recognised_and_its_job_is_offline(tmp_path: Path) -> None:
    """Kept byte for byte; as training_file or pairs_file it makes a job without rewards on each prompt once."""

    async def test(server: Server) -> None:
        file = await ok(upload(server.client, PAIRS))
        assert (file["kind"], file["lines"], file["bytes"]) == ("pairs", 3, len(PAIRS))
        assert (await server.client.get(f"/v1/files/{file['id']}/content")).content == PAIRS
        assert (await ok(upload(server.client, PROMPTS)))["kind"] == "prompts"
        method = {"type": "dpo", "dpo": {"positives": 30, "negatives": 30}}
        for way in ("training_file", "pairs_file"):
            job = await server.job(
                **{way: file["id"]}, prompts=..., rewards=..., steps=..., method=method,
                hyperparameters={"n_epochs": 4, "batch_size": 2},
            )  # fmt: skip
            shown = (job["training_file"], job["pairs_file"], job["rewards"], job["prompt_count"], job["steps"])
            assert shown == (file["id"], file["id"], [], 2, 4)
            spec = server.state.jobs.load_spec(job["id"])
            assert spec.is_offline
            assert [each.prompt for each in spec.prompts] == ["a red square", "two circles"]
        assert (await server.client.delete(f"/v1/files/{file['id']}")).status_code == 409
        for job in (await ok(server.client.get(JOBS)))["data"]:
            await ok(server.client.post(f"{JOBS}/{job['id']}/cancel"))
        await ok(server.client.delete(f"/v1/files/{file['id']}"))

    run(tmp_path, test)


def test_parquet_is_kept_as_json_lines(tmp_path: Path) -> None:
    """Binary columns or Hugging Face's structs, whatever other columns there are: the same lines, and the same hash."""
    chosen, rejected, names = picture(), picture("JPEG"), ["a red square", "two circles"]
    plain = pa.table({"prompt": names, "chosen": [chosen] * 2, "rejected": [rejected] * 2, "rater": [1, 2]})
    structs = {
        side: pa.array(
            [{"bytes": data, "path": "gone.png"}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        )
        for side, data in (("chosen", chosen), ("rejected", rejected))
    }
    sides = {"chosen": as_text(chosen), "rejected": as_text(rejected)}
    rows = [json.dumps({"prompt": name, **sides}, separators=(",", ":")) for name in names]
    lines = "".join(f"{row}\n" for row in rows).encode()

    async def test(server: Server) -> None:
        for table in (plain, pa.table({"prompt": names, **structs})):
            file = await ok(upload(server.client, parquet_of(table), name="pairs.parquet"))
            assert (file["kind"], file["lines"], file["filename"]) == ("pairs", 2, "pairs.parquet")
            assert (await server.client.get(f"/v1/files/{file['id']}/content")).content == lines
            assert file["sha256"] == hashlib.sha256(lines).hexdigest()

    run(tmp_path, test)


BROKEN_PAIRS: list[tuple[bytes, str, int]] = [
    (pair(rejected=...), "file[2]", 422),
    (pair(chosen=""), "file[2]", 422),
    (pair(prompt=""), "file[2]", 422),
    (pair(prompt="nul \0"), "file[2]", 422),
    (pair(metadata={"a": "nul \0"}), "file[2]", 422),
    (pair(extra=1), "file[2]", 422),
    (pair(chosen=1), "file[2]", 422),
    (b'{"prompt": "only a prompt"}\n', "file[2]", 422),
    (b"not json\n", "file[2]", 422),
    (pair(chosen="https://example.com/a.png"), "file[2].chosen", 422),
    (pair(rejected="data:image/png;base64,AAAA"), "file[2].rejected", 422),
    (pair(chosen="not base64!"), "file[2].chosen", 422),
    (pair(chosen=as_text(b"GIF89a" + bytes(20))), "file[2].chosen", 422),
    (pair(rejected=as_text(b"plain text")), "file[2].rejected", 422),
    (pair(rejected=as_text(noise(32)[:1000])), "file[2].rejected", 422),
    (pair(chosen=as_text(picture("JPEG")[:60])), "file[2].chosen", 422),
    (pair(chosen=as_text(claims(60_000))), "file[2].chosen", 413),
    (pair(chosen=as_text(picture(size=(2049, 2048)))), "file[2].chosen", 413),
]  # fmt: skip


def test_a_broken_pair_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    """The row, the side and what is wrong with it; sizes are judged before anything is decoded."""

    async def test(server: Server) -> None:
        for line, field, status in BROKEN_PAIRS:
            named(await upload(server.client, pair() + line + pair()), status, field)
        assert (await ok(server.client.get("/v1/files")))["data"] == []
        assert list((tmp_path / "artifacts").rglob("*.jsonl")) == []

    run(tmp_path, test)


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    """Missing columns, text or paths in the place of images, damage, and more than may be kept."""
    good = {"prompt": ["a", "b"], "chosen": [picture()] * 2, "rejected": [picture()] * 2}
    path_only = [{"bytes": None, "path": "http://127.0.0.1/a.png"}] * 2
    many = {"prompt": ["a"] * 200, "chosen": [noise(200)] * 200, "rejected": [picture()] * 200}
    tables: list[tuple[bytes, str, int]] = [
        (parquet_of(pa.table({"prompt": ["a"], "chosen": [picture()]})), "file", 422),
        (parquet_of(pa.table({**good, "chosen": ["http://127.0.0.1/a.png"] * 2})), "file[1].chosen", 422),
        (parquet_of(pa.table({**good, "rejected": path_only})), "file[1].rejected", 422),
        (parquet_of(pa.table({**good, "chosen": [picture(), b"GIF89a"]})), "file[2].chosen", 422),
        (parquet_of(pa.table({**good, "chosen": [picture(), None]})), "file[2].chosen", 422),
        (parquet_of(pa.table({**good, "prompt": ["a", ""]})), "file[2]", 422),
        (parquet_of(pa.table({**good, "prompt": [1, 2]})), "file[1].prompt", 422),
        (parquet_of(pa.table(good))[:-30], "file", 422),
        (parquet_of(pa.table({name: values[:0] for name, values in good.items()})), "file", 422),
        (b"PAR1" + bytes(40) + b"PAR1", "file", 422),
        (b"PAR1", "file", 422),
        (parquet_of(pa.table(many)), "file", 413),  # a small file: equal images are stored once
    ]

    async def test(server: Server) -> None:
        for data, field, status in tables:
            assert len(data) < 2_000_000
            named(await upload(server.client, data), status, field)
        assert (await ok(server.client.get("/v1/files")))["data"] == []
        assert list((tmp_path / "artifacts").rglob("*.jsonl")) == []

    run(tmp_path, test, api_max_file_bytes=2_000_000)


def test_a_parquet_reader_that_crashes_is_a_refusal(tmp_path: Path) -> None:
    """pyarrow ends its process on some damaged files: one that reads for the API, and never the API's own."""
    reader = [sys.executable, "-c", "import os; print('started\\n{}', flush=True); os.abort()"]
    with (
        pytest.raises(InvalidInput, match="damaged"),
        containers.container_as_json_lines(tmp_path, field="file", reader=reader) as lines,
    ):
        assert lines.read() == b"{}\n"


def test_pairs_and_prompts_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    """Each mistake names its field; what only looks like pairs in its metadata is prompts."""

    async def test(server: Server) -> None:
        lines = b'{"prompt": "x", "metadata": {"chosen": 1}}\n'
        prompts, pairs = [(await ok(upload(server.client, data)))["id"] for data in (lines, PAIRS)]
        offline: dict[str, Any] = {"prompts": ..., "rewards": ..., "method": {"type": "sft"}}
        for change, field in (
            ({"pairs_file": prompts}, "pairs_file"),
            ({"pairs_file": "file-none"}, "pairs_file"),
            ({"pairs_file": "../secret"}, "pairs_file"),
            ({"training_file": prompts}, "rewards"),
            ({"training_file": pairs, "validation_file": pairs}, "validation_file"),
            ({"training_file": pairs, "pairs_file": pairs}, "pairs_file"),
            ({"pairs_file": pairs, "prompts": [{"prompt": "x"}]}, "prompts"),
            ({"pairs_file": pairs, "replay_job": "ftjob-x"}, "replay_job"),
            ({"training_file": pairs, "method": {"type": "grpo"}}, "method.type"),
            ({"training_file": pairs, "max_staleness": 1}, "max_staleness"),
            ({"training_file": pairs, "rewards": [{"name": "shapes"}]}, "rewards"),
            ({"training_file": pairs, "record_candidates": True}, "record_candidates"),
            (
                {"training_file": pairs, "validation_file": prompts, "rewards": [{"name": "unknown"}]},
                "rewards[0].name",
            ),
        ):
            named(await server.client.post(JOBS, json=body(**{**offline, **change})), 422, field)
        assert (await ok(server.client.get(JOBS)))["data"] == []
        watched = {"training_file": pairs, "validation_file": prompts, "rewards": [{"name": "shapes"}]}
        assert (await server.job(**{**offline, **watched}))["rewards"][0]["name"] == "shapes"

    run(tmp_path, test)


# ---- replays --------------------------------------------------------------------------------------------------------


def recorded_step(spec: TrainSpec) -> bytes:
    """The beginning of a recorded step, which is all that the API reads."""
    facts = {name: getattr(spec, name) for name in (*recordings.MATCHED_FIELDS, "method", "rewards")}
    told = recordings.RecordedStep(step=0, job=recordings.RecordedJob(**facts), groups=()).model_dump_json()
    header = json.dumps({"__metadata__": {recordings.METADATA_KEY: told}}).encode()
    return len(header).to_bytes(8, "little") + header


async def recorded_job(server: Server, folder: Path, **more: Any) -> str:
    """A job that has ended, with two recorded steps."""
    given = {"candidates": 16, "seed": 5, "prompts_per_step": 2, "record_candidates": True, **more}
    job_id = str((await server.job(**given))["id"])
    server.state.jobs.finish_job(server.claim(), "succeeded")
    kept = folder / "artifacts/jobs" / job_id / "candidates"
    kept.mkdir(parents=True)
    for step in (0, 1):
        (kept / f"step-{step}.safetensors").write_bytes(recorded_step(server.state.jobs.load_spec(job_id)))
    return job_id


def test_a_replay_takes_from_the_job_what_it_is_not_told(tmp_path: Path) -> None:
    """Prompts, seed, K and steps are the recorded job's; method and rewards may be others, and need not be alive."""

    async def test(server: Server) -> None:
        job_id = await recorded_job(server, tmp_path)
        await ok(server.client.delete("/v1/rewards/shapes"))
        job = await server.job(replay_job=job_id, prompts=..., rewards=..., steps=..., method={"type": "sft"})
        assert (job["replay_job"], job["steps"], job["candidates"], job["seed"]) == (job_id, 2, 16, 5)
        assert (job["prompts_per_step"], job["prompt_count"], job["rewards"]) == (2, 1, [])
        assert job["training_file"] == (await ok(server.client.get(f"{JOBS}/{job_id}")))["training_file"]
        weighed = [{"name": "shapes", "weight": 0.5}]
        other = await server.job(replay_job=job_id, prompts=..., rewards=weighed, steps=7, method={"type": "sft"})
        assert (other["steps"], other["rewards"][0]["weight"]) == (7, 0.5)

    run(tmp_path, test)


def test_a_replay_that_cannot_work_is_refused_by_field(tmp_path: Path) -> None:
    """Jobs that recorded nothing, or have not ended, are named with the setting that records; misfits by their own."""

    async def test(server: Server) -> None:
        job_id = await recorded_job(server, tmp_path)
        silent, open_job = (await server.job())["id"], (await server.job(record_candidates=True))["id"]
        server.state.jobs.finish_job(server.claim(), "succeeded")
        damaged = await recorded_job(server, tmp_path, seed=6)
        (tmp_path / "artifacts/jobs" / damaged / "candidates/step-0.safetensors").write_bytes(b"\xff" * 100)
        before = len((await ok(server.client.get(JOBS)))["data"])
        offline: dict[str, Any] = {"prompts": ..., "rewards": ..., "steps": ..., "replay_job": job_id}
        for change, field in (
            ({"replay_job": "ftjob-none"}, "replay_job"),
            ({"replay_job": "../secret"}, "replay_job"),
            ({"replay_job": silent}, "replay_job"),
            ({"replay_job": open_job}, "replay_job"),
            ({"replay_job": damaged}, "replay_job"),
            ({"training_file": "file-x"}, "replay_job"),
            ({"prompts": [{"prompt": "x"}]}, "prompts"),
            ({"candidates": 20}, "candidates"),
            ({"seed": 1}, "seed"),
            ({"prompts_per_step": 4}, "prompts_per_step"),
            ({"model": "sd-turbo"}, "model"),
            ({"resolution": 32}, "resolution"),
            ({"rewards": [{"name": "colourfulness"}]}, "rewards"),
            ({"rewards": [{"name": "shapes", "weight": 0}]}, "rewards"),
            ({"method": {"type": "pso"}}, "method.type"),
            ({"max_staleness": 1}, "max_staleness"),
        ):
            response = await server.client.post(JOBS, json=body(**{**offline, **change}))
            named(response, 422, field)
            if change.get("replay_job") == silent:
                assert "record_candidates" in response.json()["detail"]
        assert len((await ok(server.client.get(JOBS)))["data"]) == before

    run(tmp_path, test)
