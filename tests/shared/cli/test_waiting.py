"""What is waited for is said, with a time, also where there is no terminal."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from dipole.cli.progress.job_progress import describe_wait
from dipole.cli.progress.waiting import ShownWait, WaitReminder, format_minutes
from dipole.protocol import job_events


def test_off_a_terminal_a_wait_is_a_line_at_its_start_and_one_at_its_end() -> None:
    written = io.StringIO()
    with ShownWait(Console(file=written), "Loading [the] models"):
        pass
    lines = written.getvalue().splitlines()
    assert lines[0] == "Loading [the] models …"
    assert re.fullmatch(r"Loading \[the\] models: done in \d+:\d\d", lines[1])


def test_what_failed_is_not_said_to_be_done() -> None:
    written = io.StringIO()
    with pytest.raises(ValueError, match="no"), ShownWait(Console(file=written), "Loading"):
        raise ValueError("no")
    assert written.getvalue().splitlines() == ["Loading …"]


def test_a_terminal_counts_the_seconds() -> None:
    written = io.StringIO()
    with ShownWait(Console(file=written, force_terminal=True, width=80), "Loading"):
        pass
    assert "Loading …" in written.getvalue()
    assert "0:00:00" in written.getvalue()


def test_a_long_wait_is_said_again_with_its_time_until_something_comes() -> None:
    said: list[str] = []
    twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    with WaitReminder(say, first_s=0.01) as reminder:
        reminder.wait_for("waiting for reward shapes")
        assert twice.wait(30)
        reminder.wait_for("")
    assert re.fullmatch(r"still waiting for reward shapes: \d+:\d\d so far", said[0])


@pytest.mark.parametrize(
    ("event", "waits"),
    [
        (job_events.JobQueued(reason="x"), "waiting for a worker"),
        (job_events.JobStarted(worker="w", fence=1), "waiting for the model to be loaded"),
        (job_events.EvaluationProgress(step=0, prompts_done=1, prompts=2), "evaluating at step 0"),
        (job_events.StepFinished(step=1, steps=2), "waiting for step 2 and its rewards"),
        (job_events.JobWaitsForReward(reward="shapes", reason="away", then=""), "waiting for reward shapes"),
        (job_events.JobWaitsForStorage(reason="full", then=""), "waiting for the store of its files"),
        (job_events.JobPaused(reason="asked"), "waiting until it is resumed"),
        (job_events.JobSucceeded(), ""),
        (job_events.CheckpointWritten(step=1, path="x"), None),
    ],
)
def test_an_event_says_what_the_job_waits_for(event: job_events.JobEvent, waits: str | None) -> None:
    assert describe_wait(event.kind, event.data()) == waits


def test_minutes_are_short() -> None:
    assert [format_minutes(value) for value in (0, 65, 7380)] == ["0:00", "1:05", "2:03:00"]
