"""How commands show a job that goes on: a bar on a terminal, and elsewhere a plain line for each thing that happens.

Both say what the job waits for, and for how long: `describe_wait` knows it of an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from dipole.cli.progress.waiting import FIRST_REMINDER_S, WaitReminder, format_minutes
from dipole.cli.terminal import format_time, plain, printable
from dipole.protocol import job_events

EVALUATION_LINE_S = 10.0  # between two lines on how far an evaluation is


class JobLines:
    """A line for each step and whatever else happens, and reminders while nothing does. No control characters."""

    def __init__(
        self, say: Callable[[str], None], *, held_out: Collection[str] = (), first_s: float = FIRST_REMINDER_S
    ) -> None:
        self._say, self._held_out = say, held_out
        self._reminder = WaitReminder(lambda text: self._print(time.time(), text), first_s=first_s)
        self._evaluation_told = 0.0

    def __enter__(self) -> Self:
        self._reminder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reminder.__exit__(kind, error, traceback)

    def show(self, event: dict[str, Any]) -> None:
        kind, data = event["kind"], event["data"] or {}
        if (waiting := describe_wait(kind, data)) is not None:
            self._reminder.wait_for(waiting)
        self._reminder.heard()
        if kind == job_events.StepFinished.kind:
            self._print(
                event["created_at"], f"step {data['step']}/{data['steps']}  {describe_step(data, self._held_out)}"
            )
        elif kind == job_events.RankingsPending.kind:
            self._print(event["created_at"], f"waiting for {data['reward']}: {describe_pending(data)}")
        elif kind == job_events.EvaluationProgress.kind:
            done = data["prompts_done"] == data["prompts"]
            if done or time.monotonic() - self._evaluation_told >= EVALUATION_LINE_S:
                self._evaluation_told = time.monotonic()
                self._print(event["created_at"], event["message"])
        else:
            self._print(event["created_at"], event["message"])

    def report_break(self, reason: str) -> None:
        self._print(time.time(), f"connection lost ({reason}); trying again")
        self._reminder.wait_for("waiting for the API")

    def _print(self, at: float, text: str) -> None:
        self._say(plain(f"{format_time(at)} {text}"))


class JobBar:
    """One line on a terminal: what the job does, how far it is, and for how long there has been nothing new."""

    def __init__(self, console: Console, job: dict[str, Any]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _SilenceColumn(),
                   TextColumn("{task.fields[note]}"))  # fmt: skip
        self._progress = Progress(*columns, console=console, transient=False)
        self._task = self._progress.add_task(
            job["status"], total=job["steps"], completed=job["step"], note="", since=time.monotonic()
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        kind, data = event["kind"], event["data"] or {}
        self._progress.update(self._task, since=time.monotonic())
        if (waiting := describe_wait(kind, data)) is not None:
            self._progress.update(self._task, description=printable(waiting))
        if kind == job_events.StepFinished.kind:
            note = printable(describe_step(data))
            self._progress.update(self._task, completed=data["step"], description="running", note=note)
        elif kind == job_events.RankingsPending.kind:
            self._progress.update(self._task, note=printable(describe_pending(data)))
        elif kind == job_events.EvaluationProgress.kind:
            self._progress.update(self._task, note=f"{data['prompts_done']} of {data['prompts']} prompts")
        else:
            self._progress.console.print(format_event(event))

    def report_break(self, reason: str) -> None:
        self._progress.console.print(f"[yellow]connection lost ({printable(reason)}); trying again[/]")


class _SilenceColumn(ProgressColumn):
    """Since when there is nothing new, from the third second on."""

    def render(self, task: Task) -> Text:
        silent = time.monotonic() - task.fields["since"]
        return Text(f"for {format_minutes(silent)}" if silent >= 3 and not task.finished else "")


def describe_wait(kind: str, data: dict[str, Any]) -> str | None:
    """What a job waits for after such an event, or does; empty at its end, None where the event says nothing of it."""
    if kind == job_events.JobWaitsForReward.kind:
        if data.get("reward"):
            return f"waiting for reward {data['reward']}"
        return "waiting for the store of its files" if data.get("reason") else "waiting until it is resumed"
    if kind == job_events.RankingsPending.kind:
        return f"waiting for {data['reward']}"
    if kind in (job_events.EvaluationProgress.kind, job_events.EvaluationFinished.kind):
        at = f"evaluating at step {data['step']}"
        return at if kind == job_events.EvaluationProgress.kind else f"waiting for the step after {data['step']}"
    if kind == job_events.StepFinished.kind:
        last = data["step"] == data["steps"]
        return "finishing: evaluation and export" if last else f"waiting for step {data['step'] + 1} and its rewards"
    return {
        job_events.JobCreated.kind: "waiting for a worker",
        job_events.JobQueued.kind: "waiting for a worker",
        job_events.JobReleased.kind: "waiting for a worker",
        job_events.JobStarted.kind: "waiting for the model to be loaded",
        job_events.JobSucceeded.kind: "",
        job_events.JobCancelled.kind: "",
        job_events.JobFailed.kind: "",
    }.get(kind)


def format_event(event: dict[str, Any]) -> str:
    colour = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
    return f"[dim]{format_time(event['created_at'])}[/] [{colour}]{printable(event['message'])}[/]"


def describe_step(data: dict[str, Any], held_out: Collection[str] = ()) -> str:
    """What a person wants to see of a finished step."""
    parts = [
        f"{name} {value:.3f}{' (held out)' if name in held_out else ''}"
        for name, value in (data.get("rewards") or {}).items()
        if value is not None
    ]
    for name, pending in (data.get("pending") or {}).items():
        parts.append(f"{pending['groups']} pending at {name}")
    if data.get("images_per_s"):
        parts.append(f"{data['images_per_s']:.1f} img/s")
    if data.get("eta_s") is not None:
        parts.append(f"ETA {format_minutes(data['eta_s'])}")
    return "  ".join(parts)


def describe_pending(data: dict[str, Any]) -> str:
    """What a person wants to see of rankings that are waited for."""
    parts = [f"{data['groups']} groups, the oldest for {format_minutes(data['oldest_s'])}"]
    if data.get("per_minute") is not None:
        parts.append(f"{data['per_minute']:.1f} a minute")
    if data.get("expected_s") is not None:
        parts.append(f"next step in about {format_minutes(data['expected_s'])}")
    return "  ".join(parts)
