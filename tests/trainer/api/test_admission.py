"""A job that cannot run is refused when it is created: by what live workers can load, and by its rewards' own word."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.errors import InvalidInput
from dipole_trainer.api import admission
from dipole_trainer.api.admission import check_loadable, find_missing_trackers
from dipole_trainer.database.tables import WorkerRow
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.inventory import Inventory

JOBS = "/v1/fine_tuning/jobs"
JOB: dict[str, Any] = {"prompts": [{"prompt": "a red square"}], "steps": 4}
NOBODY = "http://127.0.0.1:9"
RunApp = Callable[..., None]


def make_spec(**fields: Any) -> TrainSpec:
    return TrainSpec.model_validate({**JOB, "rewards": [{"name": "shapes"}], **fields})


def make_worker(models: dict[str, str], **features: list[str]) -> WorkerRow:
    return WorkerRow(name="worker", models={"tiny-turbo": "tiny", **models}, features=features, devices=[])


def check(spec: TrainSpec, *workers: WorkerRow, models_dir: Any = None) -> list[str]:
    return check_loadable(spec, workers, models_dir)


# ---- workers --------------------------------------------------------------------------------------------------------


def test_what_a_worker_has_under_any_of_its_names_is_accepted() -> None:
    """Folders, published names, hub ids and revisions, as the worker itself looks for them; one worker is enough."""
    able = make_worker(
        {"sd-turbo": "sd", "mine": "sdxl", "org/hubbed@abc": "sd"},
        latent_mae=["drpo-mae-latent-256"], vit_mae=["facebook/vit-mae-base"], clip=["other-clip"],
    )  # fmt: skip
    for fields in (
        {"model": "tiny-turbo"},
        {"model": "sd-turbo"},
        {"model": "stabilityai/sd-turbo"},
        {"model": "mine"},
        {"model": "org/hubbed", "revision": "abc"},
        {"model": "mine", "features": {"type": "teacher_unet"}},
        {"model": "mine", "features": {"type": "clip", "weights": "other-clip"}},
    ):
        assert check(make_spec(**fields), make_worker({}), able) == []


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"model": "sdxl-turbo"}, "model", "Run `dipole models fetch sdxl-turbo` on its machine"),
        ({"model": "org/else"}, "model", "`hf download org/else --local-dir $DIPOLE_MODELS_DIR/else`"),
        ({"model": "no-such"}, "model", "it has sd-turbo, tiny-turbo. Put it in DIPOLE_MODELS_DIR"),
        ({"model": "sd-turbo", "revision": "v1"}, "model", None),
        ({"model": "sd-turbo"}, "features.weights", "Run `dipole models fetch latent-mae` on its machine"),
        ({"model": "sd-turbo", "features": {"type": "dinov2"}}, "features.weights", "dipole models fetch dinov2"),
        ({"model": "sd-turbo", "features": {"type": "clip", "weights": "m"}}, "features.weights", "it has vit."),
    ],
)
def test_what_no_worker_has_is_refused_with_the_command_that_brings_it(
    fields: dict[str, Any], field: str, said: str | None
) -> None:
    """The model first, then the weights of its features. A folder counts for any revision: the worker looks."""
    worker = make_worker({"sd-turbo": "sd"}, clip=["vit"])
    if said is None:
        fields = {**fields, "features": {"type": "latents"}}
        assert check(make_spec(**fields), worker) == []
        return
    with pytest.raises(InvalidInput) as refused:
        check(make_spec(**fields), worker)
    assert refused.value.field == field
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("model", "field", "said"),
    [
        ("sd-turbo", "reward_decoder", "it has madebyollin/taesdxl. Run `dipole models fetch taesd` on its machine"),
        ("sdxl-turbo", None, None),
        ("tiny-turbo", None, None),
        ("sana", "reward_decoder", "there is no tiny decoder for models of the kind sana"),
    ],
)
def test_a_tiny_decoder_is_looked_for_as_the_weights_of_features_are(
    model: str, field: str | None, said: str | None
) -> None:
    """By the model's kind: there, missing with the command that brings it, or not made by anybody."""
    worker = make_worker({"sd-turbo": "sd", "sdxl-turbo": "sdxl", "sana": "sana"})
    worker.decoders = ["sdxl", "tiny"]
    spec = make_spec(model=model, reward_decoder="tiny", features={"type": "latents"})
    if field is None:
        assert check(spec, worker) == []
        return
    with pytest.raises(InvalidInput) as refused:
        check(spec, worker)
    assert (refused.value.field, said in str(refused.value)) == (field, True), refused.value


def test_of_a_worker_that_does_not_say_which_decoders_it_has_none_is_missed() -> None:
    """One from before the upgrade, whose row has no such column's value; jobs of the VAE never look."""
    silent, without = make_worker({"sd-turbo": "sd"}), make_worker({"sd-turbo": "sd"})
    silent.decoders, without.decoders = None, []
    latents = {"model": "sd-turbo", "features": {"type": "latents"}}
    assert check(make_spec(**latents, reward_decoder="tiny"), without, silent) == []
    assert check(make_spec(**latents), without) == []
    with pytest.raises(InvalidInput, match="none of 2 live workers has 'madebyollin/taesd'"):
        check(make_spec(**latents, reward_decoder="tiny"), without, without)


@pytest.mark.parametrize(
    ("fields", "workers"),
    [
        ({"model": "sdxl-turbo"}, [make_worker({"sdxl-turbo": "sdxl"})]),  # auto is vit_mae there
        ({"features": {"type": "dinov2"}}, [make_worker({})]),
        ({"features": {"type": "clip"}}, []),
    ],
)
def test_a_tiny_decoder_beside_features_of_pixels_is_refused_at_once(
    fields: dict[str, Any], workers: list[WorkerRow], tmp_path: Path
) -> None:
    """Before their weights are missed; a method that looks at no features may have both."""
    with pytest.raises(InvalidInput, match="this job's features are of pixels") as refused:
        check(make_spec(**fields, reward_decoder="tiny"), *workers, models_dir=tmp_path)
    assert refused.value.field == "reward_decoder"
    if not workers:
        check(make_spec(**fields, reward_decoder="tiny", method={"type": "sft"}), models_dir=tmp_path)


def test_model_and_features_must_be_on_the_same_worker() -> None:
    """Two workers that have one half each can run nothing."""
    halves = (make_worker({"sd-turbo": "sd"}), make_worker({}, latent_mae=["drpo-mae-latent-256"]))
    with pytest.raises(InvalidInput, match=r"features\.weights"):
        check(make_spec(model="sd-turbo"), *halves)


def test_a_tracker_that_no_worker_has_is_a_warning_with_the_command_that_brings_it() -> None:
    """One worker that has it is enough, and of workers that do not say what they have nothing is known."""
    with_board, without, silent = make_worker({}), make_worker({}), make_worker({})
    with_board.trackers, without.trackers, silent.trackers = ["tensorboard"], [], None
    spec = make_spec(report_to=["tensorboard", "wandb"])
    (told,) = find_missing_trackers(spec, [without, with_board])
    assert "no live worker has wandb" in told
    assert "pip install wandb" in told
    assert len(find_missing_trackers(spec, [without, silent])) == 2
    assert find_missing_trackers(spec, [silent]) == find_missing_trackers(spec, []) == []
    assert find_missing_trackers(make_spec(), [without]) == []


def test_with_no_worker_it_is_a_warning_and_weights_that_come_are_seen(run_app: RunApp) -> None:
    """In the answer, in the job as shown later, and among its events; a worker that lives refuses, and then not."""

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        body = {**JOB, "model": "sd-turbo", "rewards": [{"name": "x", "url": NOBODY}], "allow_unready": True}
        job = (await client.post(JOBS, json=body)).json()
        assert "no worker is alive" in job["warnings"][0]
        events = (await client.get(f"{JOBS}/{job['id']}/events")).json()["data"]
        warned = [event for event in events if event["kind"] == "warning"]
        assert [event["data"]["warning"] for event in reversed(warned)] == job["warnings"]
        assert {event["level"] for event in warned} == {"warn"}
        assert (await client.get(f"{JOBS}/{job['id']}")).json()["warnings"] == job["warnings"]
        state.workers.publish("w", Inventory({"tiny-turbo": "tiny"}, {}), [], lease_s=60)
        refused = await client.post(JOBS, json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model")
        assert "dipole models fetch sd-turbo" in refused.json()["detail"]
        there = Inventory({"sd-turbo": "sd"}, {"latent_mae": ["drpo-mae-latent-256"]}, ["sd"])
        device = {"kind": "cuda", "name": "card", "memory_bytes": 2**34}
        state.workers.publish("w", there, [device], lease_s=60, version="0.1.0")
        taken = (await client.post(JOBS, json=body)).json()
        assert len(taken["warnings"]) == 1  # the reward's
        (shown,) = (await client.get("/v1/workers")).json()["data"]
        assert (shown["id"], shown["models"], shown["devices"]) == ("w", {"sd-turbo": "sd"}, [device])
        assert shown["version"] == "0.1.0"
        assert (await client.get("/readyz")).json()["version"] == importlib.metadata.version("dipole")
        assert shown["decoders"] == ["sd"]

    run_app(test)


# ---- rewards --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def endpoint(status: int = 200, seen: list[tuple[str, str | None]] | None = None, wait_s: float = 0) -> Iterator[str]:
    """A server that answers every GET with this, after a time."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append((self.path, self.headers.get("authorization")))
            released.wait(wait_s)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_reward_is_asked_once_by_its_own_kind_and_with_its_key(run_app: RunApp) -> None:
    """Registered ones, inline ones and watched ones; a server without a word for readiness is believed."""
    seen: list[tuple[str, str | None]] = []

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        with endpoint(seen=seen) as ready, endpoint(404) as silent:
            state.rewards.put_reward("keyed", Endpoint(url=ready, key=SecretStr("secret-of-the-reward")))
            rewards = [
                {"name": "keyed"},
                {"name": "judge", "url": ready, "kind": "vllm-score", "weight": 0},
                {"name": "plain", "url": silent},
            ]
            job = await client.post(JOBS, json={**JOB, "rewards": rewards})
            assert job.status_code == 200, job.text
            assert all("not ready" not in warning for warning in job.json()["warnings"])
        assert sorted(seen) == [("/health", None), ("/readyz", "Bearer secret-of-the-reward")]

    run_app(test)


def test_unready_rewards_are_told_by_name_url_and_answer(run_app: RunApp) -> None:
    """All of them at once, a watched one too; with allow_unready the job is there, and warns of each."""

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        with endpoint(503) as loading:
            state.rewards.put_reward("registered", Endpoint(url=loading))
            rewards = [{"name": "registered"}, {"name": "away", "url": NOBODY, "weight": 0}]
            body = {**JOB, "rewards": rewards}
            refused = await client.post(JOBS, json=body)
            assert refused.status_code == 422
            problem = refused.json()
            assert problem["errors"][0]["field"] == "rewards[0]"
            for said in (
                f"reward registered at {loading} is not ready: GET /readyz answered 503",
                f"reward away at {NOBODY} is not ready: ",
                "refused",
                "--allow-unready",
            ):
                assert said in problem["detail"]
            assert (await client.get(JOBS)).json()["data"] == []
            job = (await client.post(JOBS, json={**body, "allow_unready": True})).json()
            assert [warning.split(" at ")[0] for warning in job["warnings"][1:]] == ["reward registered", "reward away"]
            events = (await client.get(f"{JOBS}/{job['id']}/events")).json()["data"]
            assert sum(event["kind"] == "warning" for event in events) == 3

    run_app(test)


def test_a_host_that_is_not_allowed_is_never_asked(run_app: RunApp) -> None:
    """Also where the allow-list has changed since the reward was registered, and whatever allow_unready says."""

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        state.rewards.put_reward("far", Endpoint(url="http://far.example:80"))
        body = {**JOB, "rewards": [{"name": "far"}], "allow_unready": True}
        refused = await client.post(JOBS, json=body)
        assert refused.status_code == 422
        assert "DIPOLE_REWARD_HOSTS" in refused.json()["detail"]

    run_app(test)


def test_silent_rewards_are_asked_together_and_the_api_answers_meanwhile(
    run_app: RunApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty-two that accept and say nothing cost one deadline; other requests are answered before it."""
    monkeypatch.setattr(admission, "READY_TIMEOUT_S", 3.0)

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        with endpoint(wait_s=600) as silent:
            rewards = [{"name": f"r{index}", "url": silent} for index in range(32)]
            began = time.monotonic()
            waiting = asyncio.ensure_future(client.post(JOBS, json={**JOB, "rewards": rewards}))
            await asyncio.sleep(0.1)
            assert (await client.get("/livez")).status_code == 200
            assert not waiting.done()
            refused = await waiting
            assert refused.status_code == 422
            assert time.monotonic() - began < 60  # one deadline, and not one each
        assert refused.json()["detail"].count("is not ready") == 32

    run_app(test)


def test_a_repeat_with_its_key_asks_nobody(run_app: RunApp) -> None:
    """The first job is the answer, also when its reward is away by then."""

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        with endpoint() as ready:
            body = {**JOB, "rewards": [{"name": "x", "url": ready}]}
            first = await client.post(JOBS, json=body, headers={"idempotency-key": "k"})
        again = await client.post(JOBS, json=body, headers={"idempotency-key": "k"})
        assert again.json()["id"] == first.json()["id"]
        assert again.json()["warnings"] == first.json()["warnings"]

    run_app(test)
