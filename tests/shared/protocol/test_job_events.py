"""What events store, and what they say: clients read both, and neither may change unseen."""

from __future__ import annotations

from typing import Any

import pytest

from dipole.protocol import job_events
from dipole.protocol.job_events import JobEvent

REPORTS: list[tuple[JobEvent, str, dict[str, Any], str]] = [
    (job_events.JobCreated(steps=3, prompts=2), "created", {}, "Job created: 3 steps on 2 prompts"),
    (job_events.JobQueued(reason="Waiting for a worker"), "queued", {}, "Waiting for a worker"),
    (
        job_events.JobQueued(reason="Reward red is back: waiting for a worker", figures={"reward": "red"}),
        "queued",
        {"reward": "red"},
        "Reward red is back: waiting for a worker",
    ),
    (job_events.JobStarted(worker="w", fence=2), "running", {"worker": "w", "fence": 2}, "Training"),
    (job_events.LeaseExpired(worker="w"), "lease_expired", {}, "Worker w has gone silent"),
    (job_events.JobReleased(state="queued", reason="SIGTERM"), "released", {}, "Job queued: SIGTERM"),
    (job_events.JobPaused(reason="no worker"), "paused", {}, "Job paused: no worker"),
    (
        job_events.JobWaitsForReward(reward="red", reason="timeout", then="goes on by itself"),
        "paused",
        {"reward": "red", "reason": "timeout"},
        "Paused: reward red is unavailable (timeout); goes on by itself",
    ),
    (job_events.JobSucceeded(), "succeeded", {}, "Job succeeded"),
    (job_events.JobCancelled(), "cancelled", {}, "Job cancelled"),
    (job_events.UnheldJobCancelled(reason="no worker"), "cancelled", {}, "Job cancelled: no worker"),
    (job_events.JobFailed(), "failed", {}, "Job failed"),
    (
        job_events.JobFailed(figures={"code": "worker_died", "message": "it died"}),
        "failed",
        {"code": "worker_died", "message": "it died"},
        "Job failed: it died",
    ),
    (
        job_events.StepFinished(step=3, steps=60, figures={"loss": 0.123456}),
        "step",
        {"step": 3, "steps": 60, "loss": 0.123456},
        "Step 3/60: training loss 0.1235",
    ),
    (  # of a step whose groups were all skipped
        job_events.StepFinished(step=3, steps=60, figures={"loss": None}),
        "step",
        {"step": 3, "steps": 60, "loss": None},
        "Step 3/60: training loss none",
    ),
    (
        job_events.CheckpointWritten(step=5, path="checkpoint-000005", figures={"checkpoint": "ftckpt-1"}),
        "checkpoint",
        {"step": 5, "path": "checkpoint-000005", "checkpoint": "ftckpt-1"},
        "Checkpoint at step 5",
    ),
    (
        job_events.RewardSilent(step=1, reward="red", reason="timeout: no ranking within 60 s"),
        "reward_silent",
        {"step": 1, "reward": "red", "reason": "timeout: no ranking within 60 s"},
        "Reward red is silent: groups go on without it until it answers again (timeout: no ranking within 60 s)",
    ),
    (
        job_events.RewardAnswersAgain(step=2, reward="red"),
        "reward_answers_again",
        {"step": 2, "reward": "red"},
        "Reward red answers again: groups wait for it",
    ),
    (
        job_events.RankingsPending(
            step=2, reward="people", groups=12, step_groups=3, oldest_s=200.0, per_minute=1.5, expected_s=120.0
        ),
        "rankings_pending",
        {
            "step": 2,
            "reward": "people",
            "groups": 12,
            "step_groups": 3,
            "oldest_s": 200.0,
            "per_minute": 1.5,
            "expected_s": 120.0,
        },
        "Waiting for people: 12 groups, the oldest for 200 s; 1.5 a minute so far",
    ),
    (
        job_events.RewardLeftOut(step=1, reward="red", group="g", reason="500"),
        "reward_failure",
        {"step": 1, "reward": "red", "group": "g", "reason": "500"},
        "Reward red was left out of a group: 500",
    ),
    (
        job_events.RewardUnverified(reward="pick", model="PickScore", revision="sha256:0123"),
        "reward_unverified",
        {"reward": "pick", "model": "PickScore", "revision": "sha256:0123"},
        "Reward pick is unverified: nobody has compared the scores of PickScore at sha256:0123 with those of its "
        "published implementation; `dipole rewards verify` does, where it is served",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("event", "kind", "data", "text"), REPORTS, ids=lambda value: getattr(value, "kind", ""))
def test_an_event_stores_its_data_and_says_its_sentence(
    event: JobEvent, kind: str, data: dict[str, Any], text: str
) -> None:
    assert (event.kind, event.data(), event.text()) == (kind, data, text)


@pytest.mark.parametrize("event", job_events.SESSION_EVENTS, ids=lambda event: event.kind)
def test_what_a_session_reports_is_told_from_its_stored_data_alone(event: type[JobEvent]) -> None:
    """Another process writes the sentence of a session's report: every word of it must be in the data."""
    assert all(each.metadata.get("stored", True) for each in event.__dataclass_fields__.values())


def test_a_kind_nobody_declared_is_named_by_itself() -> None:
    assert job_events.describe_event("new_kind", {"x": 1}) == ("New kind", "info")
