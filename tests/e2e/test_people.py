"""People as the reward, over real processes: scripted raters on the rater's own API, a job, the export, the demo."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dipole.client.ratings_api import RatingsApi
from dipole.protocol import images
from dipole.protocol.images import Pixels
from dipole.stack.stack import PEOPLE_TIMEOUT_S, LocalRaters, Stack
from dipole_trainer.datasets.recordings import RecordedGroup, read_recorded_step

from ..ratings.people import ScriptedRater, at_work
from .conftest import PATIENCE_S, Platform

SETTINGS = {"UNDO_S": "0", "GOLD_SHARE": "0", "REPEAT_SHARE": "0", "MAX": "1"}


def redness(pixels: Pixels) -> float:
    """Red above the mean of green and blue."""
    red, green, blue = pixels.reshape(-1, 3).mean(0)
    return float(red - (green + blue) / 2)


class RedLover(ScriptedRater):
    """Prefers red, finds no cross usable, and skips triangles."""

    def rate_one(self) -> bool:
        lease = self.take()
        if lease is None:
            return False
        answer: dict[str, Any] = {"tiers": self.order(lease)}
        if "cross" in lease["prompt"]:
            answer = {"none_usable": True}
        elif "triangle" in lease["prompt"]:
            answer = {"skip": "not my shape"}
        said = self.send("POST", f"/v1/rater/leases/{lease['id']}/answer", json={**answer, "dwell_ms": 5000})
        assert said.status_code == 201, said.text
        self.receipts.append(said.json())
        return True


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose one reward is people, with a sampler."""
    home = tmp_path_factory.mktemp("people")
    with Stack(home, [LocalRaters(settings=SETTINGS)], sampler=True) as stack:
        platform = Platform(stack)
        with platform.api:
            yield platform


def dipole(platform: Platform, *words: str) -> str:
    """What a command of `dipole ratings` prints about this platform."""
    command = [sys.executable, "-m", "dipole.cli", "ratings", *words, "--url", str(platform.stack.raters_url)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


def token_of(link: str) -> str:
    address, _, token = link.strip().partition("#invitation=")
    assert address.endswith("/rate")
    assert token
    return token


def recorded_groups(platform: Platform, job: str) -> dict[str, RecordedGroup]:
    """What each prompt of a job was trained on."""
    found = {}
    for path in (platform.folder(job) / "candidates").glob("step-*.safetensors"):
        with path.open("rb") as file:
            found |= {group.prompt.prompt: group for group in read_recorded_step(file).groups}
    return found


def test_a_job_trains_on_what_people_say_and_on_nothing_else(platform: Platform, tmp_path: Path) -> None:
    """Scores of each group stand in its raters' order; what nobody ranked is null and trains nothing; all is exported.

    Its raters come by links of `dipole ratings invite`, and see PNGs and nothing else.
    """
    url = str(platform.stack.raters_url)
    with RatingsApi(url) as ratings:
        links = [dipole(platform, "invite", "Ada"), ratings.invite_rater("Bo")["link"]]
    raters = [RedLover(url, token_of(link), redness) for link in links]
    names = ["a circle", "a square", "two circles", "three squares", "a cross", "a triangle"]
    prompts = [{"prompt": name} for name in names]
    prompts[-1]["metadata"] = {"rating": {"deadline_s": 5}}  # type: ignore[assignment]  # everybody skips it
    job = platform.submit([{"name": "people"}], prompts=prompts, steps=2, prompts_per_step=3, record_candidates=True)
    assert platform.job(job)["rewards"][0]["timeout_s"] == PEOPLE_TIMEOUT_S
    with at_work(*raters):
        platform.until(job, "succeeded")

    groups = recorded_groups(platform, job)
    assert groups.keys() == set(names)
    scores = {name: groups[name].results["people"].scores for name in names}
    assert all(score is None for name in names[-2:] for score in scores[name])
    skipped = platform.events(job, "skipped_group")
    assert len(skipped) == 2, platform.tell(job)

    export = tmp_path / "said.jsonl"
    dipole(platform, "export", str(export))
    pairs = [json.loads(line) for line in export.read_text().splitlines()]
    assert {pair["prompt"] for pair in pairs} == set(names[:-2])
    for pair in pairs:
        assert pair["metadata"]["job"] == job
        chosen, rejected = (redness(decode(pair[side])) for side in ("chosen", "rejected"))
        assert chosen > rejected
        said = [int(candidate[1:]) for tier in pair["metadata"]["tiers"] for candidate in tier]
        ranked = scores[pair["prompt"]]
        assert said == sorted(range(4), key=lambda index: -(ranked[index] or 0.0)), pair["prompt"]

    status = dipole(platform, "status")
    assert status.startswith("Tasks: 0 pending; 0 leased, ")
    assert {"Ada", "Bo"} <= {line.split()[0] for line in status.splitlines() if line}


def decode(text: str) -> Pixels:
    return images.decode_image(base64.b64decode(text), "image/png")


def test_the_demo_trains_on_its_visitor_and_keeps_what_it_learnt(platform: Platform, tmp_path: Path) -> None:
    """The page opens in the browser; a dozen answers make a picture; Ctrl-C ends it with a LoRA and the answers."""
    opened, out, printed = tmp_path / "opened", tmp_path / "out", tmp_path / "printed"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.partial && mv {opened}.partial {opened}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "dipole.cli", "demo", "--people", "--api", platform.stack.api_url]
    command += ["--ratings", str(platform.stack.raters_url), "--steps", "24", "--out", str(out)]
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    with printed.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as demo:
        wait_for(lambda: opened.exists() or demo.poll() is not None, printed)
        visitor = ScriptedRater(str(platform.stack.raters_url), token_of(opened.read_text()), redness)
        with at_work(visitor):
            wait_for(lambda: (out / "people-012.png").exists() or demo.poll() is not None, printed)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(PATIENCE_S) == 130, printed.read_text()
    said = printed.read_text()
    assert str(out / "people-012.png") in said
    assert opened.read_text() in said.replace("\n", "")
    assert len((out / "ratings.jsonl").read_text().splitlines()) >= 12 * 6
    assert (out / "lora-people/pytorch_lora_weights.safetensors").stat().st_size > 0
    (job,) = platform.api.get("/v1/fine_tuning/jobs", limit=1)["data"]
    assert job["status"] == "cancelled"


def wait_for(condition: Callable[[], object], printed: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, printed.read_text()
        time.sleep(0.1)
