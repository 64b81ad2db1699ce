"""The whole platform over REST, in its real processes: a job trains, survives kill -9 to the last bit, and obeys."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from dipole.conformance.inputs import oversized_png
from dipole.protocol import images
from dipole.stack.stack import EMBEDDED_REWARDS, Stack
from dipole.tiny.job import build_demo_prompts
from dipole.tiny.world import all_prompts

from ..processes import run_dipole
from .conftest import Platform

STEPS = 8
SHAPES, COLOURFULNESS = {"name": "shapes"}, {"name": "colourfulness", "weight": 0.5}
HELD_OUT = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=True)[:2]]
EVALUATION = {"prompts": HELD_OUT, "images_per_prompt": 2}


def midst(step: int) -> int:
    """Questions that a run has asked each reward when it is half-way through update number `step`, from 0."""
    return len(HELD_OUT) + 2 * step + 1


def submit(platform: Any, referee: Any) -> str:
    """The job of the first tests: two trained rewards in services, and a held-out one that can make it wait."""
    watched = {"name": "referee", "url": referee.url, "weight": 0, "timeout_s": 300}
    job: str = platform.submit([SHAPES, COLOURFULNESS, watched], steps=STEPS, evaluation=EVALUATION)
    return job


@pytest.fixture(scope="module")
def undisturbed(platform: Any, referee: Callable[..., Any]) -> str:
    """A job that nobody hurts; its id."""
    job = submit(platform, referee())
    platform.until(job, "succeeded")
    return job


def test_a_job_trains_and_leaves_what_it_made(platform: Any, undisturbed: str) -> None:
    """Events tell each step and evaluation, checkpoints are listed, samples, figures and export are there."""
    kinds = [event["kind"] for event in platform.events(undisturbed)]
    steps = [event["data"] for event in platform.events(undisturbed, "step")]
    assert [data["step"] for data in steps] == list(range(1, STEPS + 1))
    assert all(set(data["rewards"]) == {"shapes", "colourfulness", "referee"} for data in steps)
    assert all(data["loss"] > 0 for data in steps if data["skipped"] < 2)
    assert [event["data"]["step"] for event in platform.events(undisturbed, "evaluation")] == [0, STEPS]
    assert {"shapes.strict", "shapes.graded"} <= set(platform.events(undisturbed, "evaluation")[1]["data"]["scores"])
    assert kinds[-1] == "succeeded"
    assert not {"resumed", "lease_expired", "reward_failure"} & set(kinds)
    listed = platform.api.get(f"/v1/fine_tuning/jobs/{undisturbed}/checkpoints")["data"]
    assert [each["step_number"] for each in listed] == [8, 6, 4]
    found = {each["path"] for each in platform.api.get(f"/v1/fine_tuning/jobs/{undisturbed}/artifacts")["data"]}
    wanted = {f"{part}-{step}.{kind}" for part, kind in (("samples/step", "png"), ("evaluation/step", "json"))
              for step in (0, STEPS)}  # fmt: skip
    assert wanted <= found
    assert any(path.startswith("export/") for path in found)


def test_the_ledger_has_every_ranking_with_its_parts(platform: Any, undisturbed: str) -> None:
    """Each group of each step once, with every reward's scores, sub-scores and revision."""
    groups = platform.api.get(f"/v1/fine_tuning/jobs/{undisturbed}/rankings", limit=1000)["data"]
    trained = [group for group in groups if ".eval" not in group["group"]]
    assert len(trained) == 2 * STEPS
    assert len(groups) == 2 * STEPS + 2 * len(HELD_OUT)
    for group in trained:
        assert {name: len(row["scores"]) for name, row in group["rewards"].items()} == {
            "shapes": 4, "colourfulness": 4, "referee": 4,
        }  # fmt: skip
        assert [len(part) for part in group["rewards"]["shapes"]["sub_scores"].values()] == [4, 4]
        assert all(row["model_revision"] for row in group["rewards"].values())


def test_the_lora_downloads_and_is_the_trained_generator_in_diffusers(
    platform: Any, undisturbed: str, tmp_path: Path
) -> None:
    """A stock pipeline with the downloaded LoRA draws what the trainer's own network draws, and not the base's."""
    import torch
    from diffusers import StableDiffusionPipeline

    from dipole_trainer import generators
    from dipole_trainer.checkpoints import resume_state
    from dipole_trainer.generators.one_step import TINY_TURBO
    from dipole_trainer.spec import TrainSpec

    newest = platform.api.get(f"/v1/fine_tuning/jobs/{undisturbed}/checkpoints")["data"][0]
    platform.api.download_file(newest["download"], tmp_path / "lora.zip")
    zipfile.ZipFile(tmp_path / "lora.zip").extractall(tmp_path / "lora")
    pipe: Any = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        str(TINY_TURBO), dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    prompt = str(HELD_OUT[0]["prompt"])
    spec = TrainSpec.model_validate({"prompts": HELD_OUT, "rewards": [SHAPES], "lora": {"rank": 4, "alpha": 4}})
    generator = generators.build_generator(spec, models_dir=tmp_path)
    resume_state.load_checkpoint(platform.folder(undisturbed) / f"checkpoint-{STEPS}", generator)
    noise = generator.draw_noise([1, 2])

    def draw() -> Any:
        options = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "latent"}
        return pipe(prompt, latents=noise, num_images_per_prompt=2, **options).images

    base = draw()
    pipe.load_lora_weights(str(tmp_path / "lora"), weight_name="pytorch_lora_weights.safetensors")
    assert torch.allclose(draw(), generator(noise, prompt), atol=1e-4)
    assert not torch.allclose(draw(), base, atol=1e-4)


def test_kill_9_of_worker_rank_worker_and_reward_changes_not_a_bit(
    platform: Any, undisturbed: str, referee: Callable[..., Any]
) -> None:
    """Each is killed while an update is half done; the job finishes by itself, with the undisturbed run's weights."""
    server = referee()
    server.hold(after=midst(3))
    job = submit(platform, server)
    for victim, following in (("worker", 5), ("rank-worker", 6), ("shapes", None)):
        platform.wait_for(server.held.is_set, f"the update in which {victim} is killed\n{platform.tell(job)}")
        assert platform.job(job)["status"] == "running"
        platform.kill(victim)
        server.hold(after=None if following is None else midst(following))
    platform.until(job, "succeeded")
    assert [event["data"]["step"] for event in platform.events(job, "resumed")] == [2]
    assert platform.events(job, "lease_expired")
    assert not platform.events(job, "reward_failure", "paused")
    assert platform.adapter(job, STEPS) == platform.adapter(undisturbed, STEPS)
    figures = [
        json.loads((platform.folder(each) / f"evaluation/step-{STEPS}.json").read_text()) for each in (job, undisturbed)
    ]
    assert figures[0] == figures[1]


def test_weights_changed_half_way_survive_kill_9_to_the_last_bit(platform: Any, referee: Callable[..., Any]) -> None:
    """Two jobs are changed over REST amid their fifth update. One's worker is killed amid the sixth: the fifth is
    trained again, with the weights before, and the job ends with the other's bits.
    """

    def train(*, is_killed: bool) -> str:
        server = referee()
        server.hold(after=midst(4))
        job = submit(platform, server)
        platform.wait_for(server.held.is_set, f"the fifth update\n{platform.tell(job)}")
        weights = {"shapes": 0, "colourfulness": -1}
        asked = platform.api.patch(f"/v1/fine_tuning/jobs/{job}/rewards", {"weights": weights})
        assert asked["weight_changes"] == [{"weights": weights, "step": None}]
        server.hold(after=midst(5) if is_killed else None)
        if is_killed:
            platform.wait_for(server.held.is_set, f"the sixth update\n{platform.tell(job)}")
            platform.kill("worker")
            server.hold(after=None)
        platform.until(job, "succeeded")
        return job

    killed, other = train(is_killed=True), train(is_killed=False)
    assert [event["data"]["step"] for event in platform.events(killed, "resumed")] == [4]
    for job in (killed, other):
        (change,) = platform.events(job, "weights_changed")
        old_and_new = {"shapes": {"old": 1, "new": 0}, "colourfulness": {"old": 0.5, "new": -1}}
        assert change["data"] == {"step": 5, "weights": old_and_new}
    assert platform.adapter(killed, 4) == platform.adapter(other, 4)
    assert platform.adapter(killed, STEPS) == platform.adapter(other, STEPS)
    page = (platform.folder(killed) / "export/report.html").read_text()
    assert "trained, weight 0.5, -1 after step 5" in page


def test_a_backup_made_meanwhile_is_restored_elsewhere_and_goes_on(
    platform: Any, undisturbed: str, referee: Callable[..., Any], tmp_path: Path
) -> None:
    """Half-way through an update, by another process. The new place trains the rest, to the undisturbed run's weights,
    and knows what happened before; a second restore leaves it alone.
    """
    server = referee()
    server.hold(after=midst(5))
    job = submit(platform, server)
    platform.wait_for(server.held.is_set, "the sixth update")
    made = run_dipole("backup", str(tmp_path / "backups"), env=platform.stack.environment())
    assert made.returncode == 0, made.stderr
    backup = made.stdout.strip()
    platform.order(job, "cancel")
    server.hold(after=None)
    home = tmp_path / "elsewhere"
    restored = run_dipole("restore", backup, "--paused", env={"DIPOLE_HOME": str(home)})
    assert restored.returncode == 0, restored.stderr
    with Stack(home, EMBEDDED_REWARDS) as stack:
        other = Platform(stack)
        with other.api:
            other.until(job, "paused")
            assert [event["data"]["step"] for event in other.events(job, "step")] == list(range(1, 6))
            other.order(job, "resume")
            other.until(job, "succeeded")
            assert other.adapter(job, STEPS) == platform.adapter(undisturbed, STEPS)
            ids = [int(event["id"].removeprefix("ftevent-")) for event in other.events(job)]
            assert ids == sorted(set(ids))
    again = run_dipole("restore", backup, env={"DIPOLE_HOME": str(home)})
    assert again.returncode == 1
    assert "a backup is restored to a new place" in again.stderr


def run_doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by check."""
    done = run_dipole("doctor", "--json", *arguments, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return done.returncode, {each["check"]: each for each in lines}


def test_the_doctor_finds_a_healthy_stack_well_and_names_a_dead_endpoint(platform: Platform) -> None:
    """Here no problem and exit code 0; over REST the same rewards, and the one that nobody serves makes it 1."""
    code, found = run_doctor(**platform.stack.environment())
    assert (code, [each for each in found.values() if each["status"] == "problem"]) == (0, [])
    for check in ("settings", "redis", "database", "database's clock", "redis's clock", "workers", "rank workers"):
        assert found[check]["status"] == "ok", found[check]
    shapes = found["reward shapes"]
    assert shapes["message"].startswith(f"ready at {platform.stack.reward_urls['shapes']}: tiny-world-checker")
    assert found["samplers"]["status"] == "warning"
    platform.api.post("/v1/rewards", {"name": "dead", "url": "http://127.0.0.1:9"})
    try:
        code, told = run_doctor("--api", platform.stack.api_url)
    finally:
        platform.api.delete("/v1/rewards/dead")
    assert code == 1
    assert told["reward shapes"] == shapes
    assert told["reward dead"]["status"] == "problem"
    assert "http://127.0.0.1:9" in told["reward dead"]["message"]
    assert "dipole rewards register" in told["reward dead"]["fix"]


def test_an_optional_reward_that_misbehaves_is_left_out_and_said(platform: Any, referee: Callable[..., Any]) -> None:
    """Hanging, dying, NaN, too few, an id twice, HTML, 10 GB: the job succeeds, its events name each with the reason,

    the ledger has none of their scores, and of the 10 GB only some megabytes were read.
    """
    reasons = {
        "hang": "timeout", "nan": "not_finite", "count": "3 results for 4", "twice": "ids", "html": "text/html",
        "huge": "more than",
    }  # fmt: skip
    servers = {mode: referee(mode) for mode in reasons} | {"dies": referee(dies_after=1)}
    deadlines = {"hang": 3, "dies": 15}  # the others answer, each in its way
    optional = [
        {"name": mode, "url": server.url, "required": False, "timeout_s": deadlines.get(mode, 120)}
        for mode, server in servers.items()
    ]
    job = platform.submit([SHAPES, COLOURFULNESS, *optional], steps=2, prompts_per_step=1)
    platform.until(job, "succeeded")
    # whoever lets a deadline pass without a word is waited for no more, which is said once
    failures = platform.events(job, "reward_failure") + platform.events(job, "reward_silent")
    said = {name: [event["data"] for event in failures if event["data"]["reward"] == name] for name in servers}
    for mode, reason in reasons.items():
        assert [data["step"] for data in said[mode]] == ([0] if mode == "hang" else [0, 1])
        assert all(reason in data["reason"] for data in said[mode]), said[mode]
    assert [data["step"] for data in said["dies"]] == [1], said["dies"]
    assert said["dies"][0]["reason"].removeprefix("silent: ").startswith(("transport", "timeout", "circuit_open"))
    assert all(event["level"] == "warn" for event in failures)
    groups = platform.api.get(f"/v1/fine_tuning/jobs/{job}/rankings", limit=1000)["data"]
    assert len(groups) == 2
    assert all(not set(reasons) & set(group["rewards"]) for group in groups)
    assert 0 < servers["huge"].sent < 2**28


def test_a_required_reward_that_dies_pauses_the_job_until_it_is_back(
    platform: Any, referee: Callable[..., Any]
) -> None:
    """The paused job says which reward it waits for and why, and goes on by itself."""
    server = referee(dies_after=2)
    job = platform.submit([{"name": "judge", "url": server.url, "timeout_s": 3}], prompts_per_step=1, steps=4)
    waiting = platform.until(job, "paused")["waiting_for"]
    assert (waiting["code"], waiting["param"]) == ("reward_unavailable", "judge")
    assert "judge" in waiting["message"]
    assert platform.events(job, "paused")[-1]["data"]["reason"] == waiting["message"]
    referee(port=server.port)
    platform.until(job, "succeeded")
    assert [event["data"]["step"] for event in platform.events(job, "step")] == [1, 2, 3, 4]
    assert [event["data"]["step"] for event in platform.events(job, "resumed")] == [2]


def test_pause_resume_and_cancel_over_rest(platform: Any, referee: Callable[..., Any]) -> None:
    """Each is obeyed in the middle of an update; nothing finished is lost."""
    server = referee()
    server.hold(after=3)
    rewards = [SHAPES, {"name": "referee", "url": server.url, "weight": 0, "timeout_s": 300}]
    job = platform.submit(rewards, steps=50, checkpoint_every=50)
    platform.wait_for(server.held.is_set, "the second update")
    platform.order(job, "pause")
    paused = platform.until(job, "paused")
    assert (paused["step"], paused["waiting_for"]) == (1, None)
    server.hold(after=7)
    platform.order(job, "resume")
    platform.wait_for(server.held.is_set, "the fourth update")
    platform.order(job, "cancel")
    cancelled = platform.until(job, "cancelled")
    assert cancelled["step"] == 3
    checkpoints = platform.api.get(f"/v1/fine_tuning/jobs/{job}/checkpoints")["data"]
    assert [each["step_number"] for each in checkpoints] == [3, 1]
    again = httpx.post(f"{platform.stack.api_url}/v1/fine_tuning/jobs/{job}/resume", trust_env=False)
    assert again.status_code == 409


# ---- what a hostile or careless caller sends ----------------------------------------------------------------------


def image(data: bytes, name: str = "c0") -> dict[str, Any]:
    return {"id": name, "image": {"media_type": "image/png", "data": base64.b64encode(data).decode()}}


NOISE = images.encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
PIXEL = images.encode_png(np.zeros((1, 1, 3), np.uint8))
JOB = {"model": "tiny-turbo", "prompts": build_demo_prompts(held_out=False)[:1], "rewards": [SHAPES]}
HOSTILE: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "corrupt image": ("shapes", {"candidates": [image(NOISE[: len(NOISE) // 2])]}, 422, "candidates[0].image"),
    "100 megapixels": ("shapes", {"candidates": [image(oversized_png())]}, 413, "candidates[0].image"),
    "10,000 candidates": (
        "shapes", {"candidates": [image(PIXEL, f"c{n}") for n in range(10_000)]}, 413, "candidates",
    ),
    "unknown field": ("api", {**JOB, "learning_rat": 1}, 422, "learning_rat"),
    "unknown model": ("api", {**JOB, "model": "sd-turbi"}, 422, "model"),
    "P + N > K": (
        "api",
        {**JOB, "candidates": 8, "method": {"type": "drpo", "drpo": {"positives": 5, "negatives": 4}}},
        422,
        "method.drpo.positives",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("whom", "body", "status", "field"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_request_is_a_4xx_naming_its_field(
    platform: Any, whom: str, body: dict[str, Any], status: int, field: str
) -> None:
    """Over real sockets, on the running platform; the same process answers the next request."""
    before = platform.stack.processes
    url = f"{platform.stack.api_url}/v1/fine_tuning/jobs"
    if whom == "shapes":
        url, body = f"{platform.stack.reward_urls[whom]}/v1/rank", {"prompt": "a red circle", **body}
    answer = httpx.post(url, json=body, trust_env=False, timeout=60)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert httpx.get(url.replace("/v1/rank", "/v1/info"), trust_env=False, timeout=60).status_code == 200
    assert platform.stack.processes == before
