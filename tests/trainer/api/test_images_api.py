"""/v1/images/generations over real processes: an API, a sampler, a Redis; checkpoints as a worker would leave them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pydantic import SecretStr
from typer.testing import CliRunner

from dipole.broker.connection import connect_redis
from dipole.broker.image_requests import ImageRequestStore, image_coordination
from dipole.cli import app as cli
from dipole.protocol import images
from dipole.settings import ApiSettings
from dipole_trainer import generators
from dipole_trainer.api.app import create_app
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import CheckpointRow
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.store import JobStore

PROMPT = "a photo of a red square"
OPEN = "dipole:images:open"
JOB = {
    "model": "tiny-turbo", "prompts": [{"prompt": PROMPT}], "rewards": [{"name": "shapes"}], "steps": 2,
    "lora": {"rank": 4, "alpha": 4.0}, "suffix": "mine",
    "allow_unready": True,
}  # fmt: skip


@dataclass
class Platform:
    """A running API with a sampler, and a job that succeeded with two checkpoints."""

    url: str
    environment: dict[str, str]
    folder: Path
    sampler: subprocess.Popen[bytes]
    claim: Claim
    checkpoints: list[str]

    @property
    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/fine_tuning/jobs/{self.claim.job_id}").json()
        return found

    def post(self, timeout: float = 120, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/images/generations", json=asked(**body), timeout=timeout, trust_env=False)

    def draw(self, **body: Any) -> list[bytes]:
        """PNG files."""
        answer = self.post(**body)
        assert answer.status_code == 200, answer.text
        return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


def asked(**body: Any) -> dict[str, Any]:
    """A request; `...` leaves a field out."""
    given = {"model": "tiny-turbo", "prompt": PROMPT, **body}
    return {name: value for name, value in given.items() if value is not ...}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def running_sampler(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dipole serve sampler`, from its first beat on."""
    command = [sys.executable, "-m", "dipole.cli", "serve", "sampler"]
    with (folder / "sampler.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with connect_redis(environment["DIPOLE_REDIS_URL"]) as client:
            wait_for(
                lambda: ImageRequestStore(client).count_samplers(now=image_coordination(client).server_time()),
                "a sampler",
            )
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Callable[..., Any], api_server: Callable[..., Any]
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("images")
    with redis_server(folder) as url, contextlib.ExitStack() as running:
        settings = {
            "REDIS_URL": url, "MODELS_DIR": str(folder / "models"), "SAMPLER_MAX_SIDE": "512",
            "SAMPLER_TIMEOUT_S": "600",
        }  # fmt: skip
        api = running.enter_context(api_server(folder, **settings))
        process = running.enter_context(running_sampler(api.environment, folder))
        httpx.post(f"{api.url}/v1/rewards", json={"name": "shapes", "url": "http://127.0.0.1:9"}).raise_for_status()
        httpx.post(f"{api.url}/v1/fine_tuning/jobs", json=JOB).raise_for_status()
        yield Platform(api.url, api.environment, folder, process, *train(api.environment))


def train(environment: dict[str, str]) -> tuple[Claim, list[str]]:
    """Play the worker: two checkpoints whose weights are surely not the base's; their ids."""
    database = Database(environment["DIPOLE_DATABASE_URL"])
    store = JobStore(database)
    claim = store.claim_job("worker", 60)
    assert claim is not None
    made = []
    for step in (1, 2):
        save(environment, claim, step)
        made.append(store.add_checkpoint(claim, step, f"checkpoint-{step}", {}, kept=[1, 2]).id)
    store.finish_job(claim, "succeeded")
    database.close()
    return claim, made


def save(environment: dict[str, str], claim: Claim, step: int) -> None:
    """A checkpoint with weights drawn from its step."""
    generator = generators.build_generator(claim.spec, models_dir=Path("none"))
    state = {"model": claim.spec.model, "base": resume_state.fingerprint_base(generator)}
    draws = torch.Generator().manual_seed(step)
    for parameter in generator.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    workdir = Path(environment["DIPOLE_ARTIFACTS_URL"]) / "jobs" / claim.job_id
    workdir.mkdir(parents=True, exist_ok=True)
    resume_state.save_checkpoint(workdir, step, generator, torch.optim.AdamW(generator.parameters()), state)


# ---- what is drawn ------------------------------------------------------------------------------------------------


def test_a_seed_gives_its_image_however_many_are_asked_for(platform: Platform) -> None:
    """Image i of n is the image of seed + i alone, byte for byte; seeds come back; without a seed each call differs."""
    answer = platform.post(n=3, seed=5).json()
    assert [image["seed"] for image in answer["data"]] == [5, 6, 7]
    assert (answer["size"], answer["output_format"], answer["checkpoint"]) == ("64x64", "png", None)
    together = platform.draw(n=3, seed=5)
    assert [image["b64_json"] for image in answer["data"]] == [base64.b64encode(each).decode() for each in together]
    assert together == [*platform.draw(seed=5), *platform.draw(seed=6), *platform.draw(seed=7)]
    assert len({*together, *platform.draw(), *platform.draw(seed=None, n=None, size=None)}) == 5


def test_it_draws_what_the_generator_draws(platform: Platform) -> None:
    """For the base and for a checkpoint, an image is that of a generator that is loaded here, to one level of 255."""
    generator = generators.build_generator(platform.claim.spec, models_dir=Path("none"))
    workdir = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / "jobs" / platform.claim.job_id
    for model in ("tiny-turbo", platform.checkpoints[1]):
        if model != "tiny-turbo":
            resume_state.load_checkpoint(workdir / "checkpoint-2", generator)
        with torch.no_grad():
            expected = generator.decode_images(generator(generator.draw_noise([11]), PROMPT))[0]
        found = images.decode_image(platform.draw(model=model, seed=11)[0], "image/png")
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_every_name_of_a_model_draws_with_its_weights(platform: Platform) -> None:
    """Ids and names mean the same, the job's name its last checkpoint, in whichever order they are asked for."""
    tuned = platform.job["fine_tuned_model"]
    first, second = platform.checkpoints
    drawn = {
        name: platform.draw(model=name, seed=3)[0]
        for name in (first, "tiny-turbo", second, tuned, f"{tuned}:ckpt-step-1", f"{tuned}:ckpt-step-2")
    }
    assert drawn[f"{tuned}:ckpt-step-1"] == drawn[first] == platform.draw(model=first, seed=3)[0]
    assert drawn[tuned] == drawn[second] == drawn[f"{tuned}:ckpt-step-2"]
    assert len({drawn["tiny-turbo"], drawn[first], drawn[second]}) == 3
    assert platform.post(model=tuned, seed=3).json()["checkpoint"] == second


def test_an_image_has_the_size_that_was_asked_for(platform: Platform) -> None:
    """`size` in pixels; `auto` is the model's own, or the job's."""
    for size, side in (("96x96", 96), ("auto", 64)):
        answer = platform.post(size=size).json()
        assert answer["size"] == f"{side}x{side}"
        data = base64.b64decode(answer["data"][0]["b64_json"])
        assert images.decode_image(data, "image/png").shape == (side, side, 3)


def test_a_prompt_that_is_not_read_to_its_end_is_told(platform: Platform) -> None:
    """With what the model never read; a prompt that fits has no warning."""
    long = " ".join(["red"] * 20)
    assert "never reads 'red red red red red red circle'" in platform.post(prompt=f"{long} circle").json()["warning"]
    assert platform.post().json()["warning"] is None


def test_the_command_writes_files(platform: Platform, tmp_path: Path) -> None:
    """`dipole images generate` writes a PNG a seed under a name that tells model, prompt and seed, and prints where."""
    words = ["images", "generate", "--api", platform.url, "--out", str(tmp_path), "--prompt", PROMPT, "--n", "2"]
    done = CliRunner().invoke(cli, [*words, "--model", platform.checkpoints[0], "--seed", "8", "--size", "32x32"])
    assert done.exit_code == 0, done.output
    written = [Path(line) for line in done.stdout.split()]
    assert written == [tmp_path / f"{platform.checkpoints[0]}_a-photo-of-a-red-square_{seed}.png" for seed in (8, 9)]
    drawn = platform.draw(model=platform.checkpoints[0], seed=8, n=2, size="32x32")
    assert [path.read_bytes() for path in written] == drawn
    assert done.stderr == ""
    words[words.index(PROMPT)] = "red " * 20
    assert "never reads" in CliRunner().invoke(cli, [*words, "--model", "tiny-turbo"]).stderr
    failed = CliRunner().invoke(cli, [*words, "--model", "sd-turbi"])
    assert failed.exit_code == 1
    assert "unknown model" in failed.stderr


# ---- what is refused ----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no model": ({"model": ...}, "model", "required"),
    "unknown model": ({"model": "sd-turbi"}, "model", "known are tiny-turbo"),
    "a path": ({"model": "../tiny"}, "model", "unknown model"),
    "unknown checkpoint": ({"model": "ftckpt-0b5e7f2c9a4d1e8f63b7c2a5"}, "model", "pruned"),
    "unknown job": ({"model": "ft:tiny-turbo:dipole:mine:00000000"}, "model", "unknown model"),
    "no such name": ({"model": "ft:tiny-turbo"}, "model", "unknown model"),
    "no prompt": ({"prompt": ""}, "prompt", "at least 1"),
    "too many": ({"n": 11}, "n", "less than or equal to 10"),
    "none": ({"n": 0}, "n", "greater than or equal to 1"),
    "not square": ({"size": "512x256"}, "size", "give 256x256"),
    "no multiple of 8": ({"size": "100x100"}, "size", "give 96x96"),
    "too large": ({"size": "1024x1024"}, "size", "DIPOLE_SAMPLER_MAX_SIDE"),
    "no size": ({"size": "big"}, "size", "like 512x512"),
    "a URL": ({"response_format": "url"}, "response_format", "give b64_json"),
    "a GIF": ({"output_format": "gif"}, "output_format", "png"),
    "negative seed": ({"seed": -1}, "seed", "greater than or equal to 0"),
    "seed JSON cannot say": ({"seed": 2**53}, "seed", "less than or equal to"),
    "unknown field": ({"steps": 4}, "steps", "not permitted"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "field", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_names_its_field(platform: Platform, body: dict[str, Any], field: str, said: str) -> None:
    """It is a 422 problem that says what to mend, and nothing is queued for it."""
    answer = platform.post(**body)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert (problem["errors"][0]["field"], problem["error"]["param"]) == (field, field)
    assert said in problem["detail"]
    with connect_redis(platform.environment["DIPOLE_REDIS_URL"]) as client:
        assert not client.exists(OPEN, "images")


def test_what_the_sampler_cannot_draw_is_told_to_the_caller(platform: Platform) -> None:
    """Weights that are not there are a 422 on `model`; a broken file is a 500 that shows nothing of the inside."""
    missing = platform.post(model="sd-turbo")
    assert missing.status_code == 422
    assert missing.json()["errors"][0]["field"] == "model"
    assert "dipole models fetch sd-turbo" in missing.json()["detail"]
    broken = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / "jobs" / platform.claim.job_id / "checkpoint-8"
    (broken / "unet_lora").mkdir(parents=True)
    (broken / "training_state.json").write_text("{}")
    (broken / "unet_lora/adapter_model.safetensors").write_bytes(b"no such thing")
    database = Database(platform.environment["DIPOLE_DATABASE_URL"])
    with database.writing() as session:
        for step in (8, 9):
            session.add(
                CheckpointRow(
                    id=f"ftckpt-{step}", job_id=platform.claim.job_id, step=step, path=f"checkpoint-{step}", metrics={},
                    created_at=0.0,
                )
            )  # fmt: skip
    database.close()
    pruned = platform.post(model="ftckpt-9")
    assert (pruned.status_code, pruned.json()["errors"][0]["field"]) == (422, "model")
    assert "no longer there" in pruned.json()["detail"]
    failed = platform.post(model="ftckpt-8")
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert "safetensor" not in failed.text.lower()
    assert failed.headers["x-request-id"] in (platform.folder / "sampler.log").read_text()
    assert platform.draw(model=platform.checkpoints[0], seed=3)  # the next one is drawn as ever


# ---- when nobody draws --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve(folder: Path, redis_url: str, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The app in this process."""
    settings = ApiSettings(
        home=folder, database_url=f"sqlite:///{folder}/jobs.db", artifacts_url=f"{folder}/artifacts",
        models_dir=folder / "models", redis_url=redis_url, **more,
    )  # fmt: skip
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1", timeout=60) as client,
    ):
        yield client


def told(answer: httpx.Response, said: str) -> None:
    """A 503 problem that says this, and when to come back."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert said in answer.json()["detail"]


def test_without_a_sampler_the_answer_comes_at_once(tmp_path: Path, redis_server: Callable[..., Any]) -> None:
    """A 503 names the command that starts one; without Redis it names Redis."""

    async def test(url: str, said: str) -> None:
        async with serve(tmp_path, url) as client:
            told(await client.post("/v1/images/generations", json=asked()), said)

    with redis_server(tmp_path) as url:
        asyncio.run(test(url, "dipole serve sampler"))
    asyncio.run(test(url, "Redis does not answer"))


def test_a_busy_sampler_is_waited_for_until_the_deadline(tmp_path: Path, redis_server: Callable[..., Any]) -> None:
    """What is past the limit is refused at once, what waits ends with a 503; the event loop serves others meanwhile."""

    async def test(url: str, redis: Any) -> None:
        async with serve(tmp_path, url, sampler_timeout_s=5, sampler_queue=2) as client:

            async def post(seed: int) -> httpx.Response:
                return await client.post("/v1/images/generations", json=asked(seed=seed))

            began = time.monotonic()
            waiting = [asyncio.create_task(post(seed)) for seed in range(2)]
            await asyncio.to_thread(wait_for, lambda: redis.zcard(OPEN) == 2, "both wait")
            told(await post(3), "DIPOLE_SAMPLER_QUEUE")
            assert (await client.get("/livez")).status_code == 200
            assert not any(each.done() for each in waiting)
            for answer in await asyncio.gather(*waiting):
                told(answer, "every sampler was busy")
            assert time.monotonic() - began > 4.9

    with redis_server(tmp_path) as url, connect_redis(url) as client:
        ImageRequestStore(client).record_heartbeat(
            "somebody", now=image_coordination(client).server_time()
        )  # a sampler that never takes anything
        asyncio.run(test(url, client))
        assert client.zcard(OPEN) == 0


def test_a_redis_that_forgets_costs_a_503(tmp_path: Path, redis_server: Callable[..., Any]) -> None:
    """An order that was lost with Redis's memory is told at once, and asked for again."""

    async def test(url: str, redis: Any) -> None:
        async with serve(tmp_path, url) as client:
            asking = asyncio.create_task(client.post("/v1/images/generations", json=asked()))
            await asyncio.to_thread(wait_for, lambda: redis.zcard(OPEN) == 1, "it waits")
            redis.flushall()
            told(await asyncio.wait_for(asking, 30), "Redis has dropped the request: send the request again")

    with redis_server(tmp_path) as url, connect_redis(url) as client:
        ImageRequestStore(client).record_heartbeat("somebody", now=image_coordination(client).server_time())
        asyncio.run(test(url, client))


def test_a_key_needs_the_scope(tmp_path: Path) -> None:
    """Drawing is for keys with `train`."""

    async def test() -> None:
        key = "an-admin-key-of-some-length"
        async with serve(tmp_path, "redis://127.0.0.1:9/0", api_key=SecretStr(key)) as client:
            admin = {"authorization": f"Bearer {key}"}
            created = await client.post("/v1/api_keys", json={"name": "r", "scopes": ["rate"]}, headers=admin)
            rater = {"authorization": f"Bearer {created.json()['key']}"}
            assert (await client.post("/v1/images/generations", json=asked(), headers=rater)).status_code == 403
            assert (await client.post("/v1/images/generations", json=asked())).status_code == 401

    asyncio.run(test())


def test_a_caller_who_hangs_up_frees_the_place(platform: Platform) -> None:
    """The order is withdrawn, and the sampler does not draw it when it comes to it."""
    with connect_redis(platform.environment["DIPOLE_REDIS_URL"]) as client:
        os.kill(platform.sampler.pid, signal.SIGSTOP)
        try:
            with pytest.raises(httpx.ReadTimeout):
                platform.post(timeout=1, seed=1)
            wait_for(lambda: client.zcard(OPEN) == 0, "the order is withdrawn", 10)
        finally:
            os.kill(platform.sampler.pid, signal.SIGCONT)
        assert platform.draw(seed=2)
        assert "nobody waits for it" in (platform.folder / "sampler.log").read_text()


def test_a_sampler_that_is_killed_costs_a_503(platform: Platform) -> None:
    """kill -9 in the middle of a request is seen long before the deadline, and nothing is left of the request."""
    request = {"n": 10, "seed": 1, "size": "512x512"}
    with ThreadPoolExecutor() as pool, connect_redis(platform.environment["DIPOLE_REDIS_URL"]) as client:
        began = time.monotonic()
        asking = pool.submit(platform.post, **request)
        wait_for(lambda: client.keys("dipole:image:*:0"), "the first image")
        platform.sampler.kill()
        told(asking.result(), "the sampler that worked on this ended: send the request again")
        assert time.monotonic() - began < 40
        assert not client.exists(OPEN)
