"""What the whole-platform tests share: a stack with a trainer worker, its REST client, and a reward they control."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dipole.client.trainer_api import TrainerApi
from dipole.stack.stack import EMBEDDED_REWARDS, Stack
from dipole.tiny.job import build_demo_prompts

from ..referee import referee as referee

TERMINAL = ("succeeded", "failed", "cancelled")
PATIENCE_S = 150  # for anything that takes seconds on an idle machine


class Platform:
    """A running stack as a caller sees it, and the means to hurt it."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.api = stack, TrainerApi(stack.api_url)

    def submit(self, rewards: list[dict[str, Any]], **changes: Any) -> str:
        """Create a very small job; its id."""
        body = {
            "model": "tiny-turbo", "prompts": build_demo_prompts(held_out=False)[:6], "rewards": rewards,
            "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}, "lora": {"rank": 4, "alpha": 4},
            "optimizer": {"lr": 1e-3}, "steps": 4, "candidates": 4, "prompts_per_step": 2, "chunk_size": 2,
            "checkpoint_every": 2, **changes,
        }  # fmt: skip
        return str(self.api.post("/v1/fine_tuning/jobs", body)["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.api.get(f"/v1/fine_tuning/jobs/{job_id}"))

    def order(self, job_id: str, verb: str) -> None:
        self.api.post(f"/v1/fine_tuning/jobs/{job_id}/{verb}")

    def events(self, job_id: str, *kinds: str) -> list[dict[str, Any]]:
        """Events so far, oldest first."""
        found = list(self.api.iterate_items(f"/v1/fine_tuning/jobs/{job_id}/events"))[::-1]
        return [event for event in found if not kinds or event["kind"] in kinds]

    def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait for one of the states, or for the job's end; it must be one of them."""

        def arrived() -> bool:
            return self.job(job_id)["status"] in (*states, *TERMINAL)

        self.wait_for(arrived, f"{job_id} {states}")
        job = self.job(job_id)
        assert job["status"] in states, (job["status"], job["error"], self.tell(job_id))
        return job

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, f"not within {PATIENCE_S} s: {what}"
            time.sleep(0.1)

    def tell(self, job_id: str) -> str:
        return "\n".join(f"{event['kind']}: {event['message']}" for event in self.events(job_id))

    def folder(self, job_id: str) -> Path:
        return self.stack.home / "artifacts/jobs" / job_id

    def adapter(self, job_id: str, step: int) -> bytes:
        return (self.folder(job_id) / f"checkpoint-{step}/unet_lora/adapter_model.safetensors").read_bytes()

    def kill(self, name: str) -> None:
        """kill -9, and nothing else: what comes back comes by itself."""
        os.kill(self.stack.processes[name], signal.SIGKILL)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole platform in processes of its own; leases are short, and every process has one thread for maths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPOLE_LEASE_S", "4")
        with Stack(tmp_path_factory.mktemp("platform"), EMBEDDED_REWARDS) as stack:
            platform = Platform(stack)
            with platform.api:
                yield platform
