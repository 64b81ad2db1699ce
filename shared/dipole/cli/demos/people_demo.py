"""`dipole demo --people`: whoever runs it ranks four images at a time in the browser, and the generator follows.

A platform whose one reward is people; a job of one prompt an update; an invitation, opened in the browser. After each
dozen updates the checkpoint draws prompts that were never shown, on the noises on which the base drew them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
import webbrowser
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dipole.cli.demos import people_pictures
from dipole.cli.demos.demo_jobs import cancel_left_jobs, create_demo_job
from dipole.cli.optional_imports import explain_missing
from dipole.cli.progress.waiting import ShownWait
from dipole.cli.terminal import err, printable
from dipole.client.ratings_api import RatingsApi
from dipole.client.trainer_api import TrainerApi
from dipole.errors import DipoleError
from dipole.protocol import job_events
from dipole.tiny.job import build_people_job, build_people_prompts

INSTRUCTIONS = "Which do you like best? Any taste will do, such as the redder the better; keep to it."
HELD_OUT_PROMPTS, NOISES, FIRST_SEED = 8, 4, 1000
STOP_S = 60.0
GENERATE_TIMEOUT_S = 600.0
# of undo only a moment, for somebody waits; every answer trains, none is asked for to know the rater
RATER_SETTINGS = {"UNDO_S": "2", "GOLD_SHARE": "0", "REPEAT_SHARE": "0"}
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class PeopleAddresses:
    """Where a platform and its rating service are."""

    api: str
    ratings: str


def run_people_demo(
    running: PeopleAddresses | None, key: str | None, ratings_key: str | None, *, steps: int, seed: int, out: Path
) -> bool:
    """Whether it came to its end; False when Ctrl-C ended it, with what was learnt kept.

    `running` is a platform that has the reward `people`; None starts one. Raises DipoleError when the job fails.
    """
    with (
        _addresses(running, out) as at,
        TrainerApi(at.api, key) as api,
        RatingsApi(at.ratings, ratings_key) as ratings,
    ):
        if running is None:
            cancel_left_jobs(api, console.print)
        link = ratings.invite_rater("the demo's visitor")["link"]
        job = _create_job(api, out, steps, seed)
        demo = _PeopleDemo(api, job, out)
        try:
            demo.draw_base()
            console.print(f"\nRank here, in a browser of this machine:\n\n    {link}\n")
            if open_browser(link):
                console.print("It was opened for you. Ctrl-C ends the demo at any time and keeps what was learnt.\n")
            demo.follow(steps)
            ended = True
        except KeyboardInterrupt:
            console.print("\nStopping: what was learnt so far is written.")
            demo.stop()
            ended = False
        answers = out / "ratings.jsonl"
        ratings.download_export(answers, "jsonl")
        demo.print_results(answers)
    return ended


def open_browser(link: str) -> bool:
    """Whether a browser with windows took it; one in this terminal would cover what is printed."""
    has_windows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    )
    try:
        return has_windows and webbrowser.open(link)
    except (webbrowser.Error, OSError):
        return False


@contextmanager
def _addresses(running: PeopleAddresses | None, out: Path) -> Iterator[PeopleAddresses]:
    """Those of the given platform, or of an embedded stack for as long as it is needed."""
    if running is not None:
        yield running
        return
    from dipole.cli.serve import running_stack

    with explain_missing("embedded"):
        from dipole.stack.stack import LocalRaters
    people = LocalRaters(settings=RATER_SETTINGS)
    with running_stack(console, out / "platform", [people], sampler=True) as stack:
        assert stack.raters_url is not None
        yield PeopleAddresses(stack.api_url, stack.raters_url)


def _create_job(api: TrainerApi, out: Path, steps: int, seed: int) -> dict[str, Any]:
    path = out / "prompts-people.jsonl"
    lines = build_people_prompts(held_out=False, instructions=INSTRUCTIONS)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    created = create_demo_job(api, build_people_job(steps=steps, seed=seed), {"training_file": path})
    console.print(f"Created {created['id']}: {steps} updates of {created['model']}, four images of a prompt each")
    return created


class _PeopleDemo:
    """One job of the demo, and the pictures of what it has learnt so far."""

    def __init__(self, api: TrainerApi, job: dict[str, Any], out: Path) -> None:
        self.api, self.job, self.out = api, job, out
        self.path = f"/v1/fine_tuning/jobs/{job['id']}"
        self.prompts = [line["prompt"] for line in build_people_prompts(held_out=True)[:HELD_OUT_PROMPTS]]
        self.base: list[list[Image.Image]] = []
        self.drawn: list[Path] = []

    def draw_base(self) -> None:
        with ShownWait(err, "Drawing what the base makes of prompts that are never shown"):
            self.base = self._draw_images(self.job["model"])

    def follow(self, steps: int) -> None:
        """Until the job has ended, with a picture at each checkpoint. Raises DipoleError when it did not succeed."""
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            answered = progress.add_task("answers that trained", total=steps)
            for event in self.api.follow_events(self.job["id"]):
                kind, data = event["kind"], event["data"] or {}
                if kind == job_events.StepFinished.kind:
                    progress.update(answered, completed=data["step"])
                elif kind == job_events.CheckpointWritten.kind:
                    progress.console.print(f"After {data['step']}: {self.draw_checkpoint(data['step'])}")
                elif kind in (job_events.GroupSkipped.kind, job_events.JobPaused.kind, job_events.JobFailed.kind):
                    progress.console.print(f"[yellow]{printable(event['message'])}[/]")
        ended = self.api.get(self.path)
        if ended["status"] != "succeeded":
            why = (ended.get("error") or {}).get("message", "see its events")
            raise DipoleError(f"job {ended['id']} {ended['status']}: {why}")

    def stop(self) -> None:
        """Cancel the job and wait for its last checkpoint."""
        self.api.post(f"{self.path}/cancel")
        until = time.monotonic() + STOP_S
        while self.api.get(self.path)["status"] not in ("cancelled", "succeeded", "failed"):
            if time.monotonic() > until:
                return
            time.sleep(0.2)

    def draw_checkpoint(self, step: int) -> Path:
        """Before and after, of the checkpoint at this step."""
        (found,) = [each for each in self._checkpoints() if each["step_number"] == step]
        sides = {"base": self.base, f"after {step} answers": self._draw_images(found["id"])}
        self.drawn.append(people_pictures.draw_comparison(self.prompts, sides, self.out / f"people-{step:03}.png"))
        return self.drawn[-1]

    def print_results(self, answers: Path) -> None:
        """Unpack the newest LoRA, and say where things are."""
        written = {"what you said, as pairs": answers}
        if self.drawn:
            written["before and after"] = self.drawn[-1]
        checkpoints = self._checkpoints()
        if checkpoints:
            written[f"LoRA of {checkpoints[0]['step_number']} updates"] = self._download_lora(checkpoints[0])
        console.print()
        for what, path in written.items():
            console.print(f"{what + ':':26}{path}")

    def _download_lora(self, checkpoint: dict[str, Any]) -> Path:
        folder, archive = self.out / "lora-people", self.out / "lora-people.zip"
        self.api.download_file(checkpoint["download"], archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        archive.unlink()
        return folder

    def _checkpoints(self) -> Sequence[dict[str, Any]]:
        """The newest first."""
        found: list[dict[str, Any]] = self.api.get(f"{self.path}/checkpoints")["data"]
        return found

    def _draw_images(self, model: str) -> list[list[Image.Image]]:
        """A row a prompt, always of the same noises."""
        rows: list[list[Image.Image]] = []
        for index, prompt in enumerate(self.prompts):
            body = {"model": model, "prompt": prompt, "n": NOISES, "seed": FIRST_SEED + index * NOISES}
            answer = self.api.post("/v1/images/generations", body, timeout=GENERATE_TIMEOUT_S)
            rows.append([Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) for each in answer["data"]])
        return rows
