"""`dipole serve worker` in two processes of `accelerate launch`, on a real platform: a job, kill -9, an orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dipole.client.trainer_api import TrainerApi
from dipole.stack.stack import DEFAULT_REWARDS, Stack
from dipole.tiny.job import build_demo_prompts

PATIENCE_S = 120
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """API, Redis, a rank worker and one reward service; the trainer is each test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPOLE_LEASE_S", "4")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with Stack(tmp_path_factory.mktemp("several"), DEFAULT_REWARDS[:1], worker=False) as running:
            yield running


@contextlib.contextmanager
def worker(stack: Stack, log: Path) -> Iterator[psutil.Popen]:
    """A launcher with a trainer worker of two processes."""
    command = [sys.executable, *LAUNCH, "-m", "dipole.cli", "serve", "worker"]
    with log.open("ab") as output:
        launcher = psutil.Popen(
            command, env={**os.environ, **stack.environment()}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield launcher
    finally:
        for process in [launcher, *launcher.children(recursive=True)] if launcher.is_running() else []:
            process.kill()
        launcher.wait(30)


def create(api: TrainerApi, **changes: Any) -> str:
    body = {
        "model": "tiny-turbo", "prompts": build_demo_prompts(held_out=False)[:6], "rewards": [{"name": "shapes"}],
        "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}, "lora": {"rank": 4, "alpha": 4},
        "steps": 3, "candidates": 4, "prompts_per_step": 4, "checkpoint_every": 1,
        "evaluation": {"prompts": build_demo_prompts(held_out=True)[:3], "images_per_prompt": 2}, **changes,
    }  # fmt: skip
    return str(api.post("/v1/fine_tuning/jobs", body)["id"])


def events(api: TrainerApi, job: str, kind: str) -> list[dict[str, Any]]:
    found = list(api.iterate_items(f"/v1/fine_tuning/jobs/{job}/events"))[::-1]
    return [event["data"] for event in found if event["kind"] == kind]


def until(condition: Callable[[], object], what: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}\n{log.read_text()[-4000:]}"
        time.sleep(0.2)


def finished(api: TrainerApi, job: str, log: Path) -> dict[str, Any]:
    path = f"/v1/fine_tuning/jobs/{job}"
    until(lambda: api.get(path)["status"] in ("succeeded", "failed", "cancelled"), "the job's end", log)
    found: dict[str, Any] = api.get(path)
    assert found["status"] == "succeeded", (found["error"], log.read_text()[-4000:])
    return found


def test_two_processes_train_jobs_and_survive_kill_9(stack: Stack, tmp_path: Path, referee: Callable[..., Any]) -> None:
    """A job's every step, evaluation and ranking is told once, whoever drew it. One that loses a process ends its
    worker, and the next goes on with it. SIGTERM ends the launcher and both processes."""
    log = tmp_path / "worker.log"
    with TrainerApi(stack.api_url) as api:
        with worker(stack, log) as launcher:
            job = create(api)
            finished(api, job, log)
            assert [data["step"] for data in events(api, job, "step")] == [1, 2, 3]
            assert [data["step"] for data in events(api, job, "evaluation")] == [0, 3]
            groups = [each["group"] for each in api.iterate_items(f"/v1/fine_tuning/jobs/{job}/rankings")]
            trained = {f"{job}.{step}.{index}" for step in range(3) for index in range(4)}
            assert sorted(groups) == sorted(trained | {f"{job}.eval{step}.{i}" for step in (0, 3) for i in range(3)})

            slow = referee()
            slow.hold(after=3 + 4 + 1)  # the evaluation's, the first step's, and one of the second's
            held = {"name": "referee", "url": slow.url, "timeout_s": 300}
            job = create(api, rewards=[{"name": "shapes"}, held])
            until(slow.held.is_set, "the second step", log)
            until(lambda: events(api, job, "checkpoint"), "the first checkpoint", log)
            (second,) = [each for each in launcher.children() if each.environ()["RANK"] == "1"]
            second.send_signal(signal.SIGKILL)
            assert launcher.wait(30) != 0

        slow.hold(after=None)
        with worker(stack, log) as launcher:
            finished(api, job, log)
            assert [data["step"] for data in events(api, job, "resumed")] == [1]
            assert len(events(api, job, "lease_expired")) == 1
            processes = launcher.children()
            assert len(processes) == 2
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(30)
            assert psutil.wait_procs(processes, timeout=30)[1] == []
