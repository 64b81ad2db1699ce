"""What a worker tells Prometheus of its job: the events' figures and whom it waits for, and nothing once it is left."""

from __future__ import annotations

import pytest

from dipole.protocol import job_events
from dipole_trainer.ranking.groups import RankingBacklog
from dipole_trainer.ranking.known_answers import KnownAnswersRanker
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.worker.metrics import WorkerMetrics

SPEC = TrainSpec(prompts=(PromptSpec(prompt="x"),), rewards=(RewardSpec(name="shapes"),), steps=6, prompts_per_step=3)
STEP = job_events.StepFinished(
    step=2,
    steps=6,
    figures={
        "loss": None,
        "rewards": {"shapes": 0.5},
        "spread": {"shapes": 0.1},
        "staleness": 1,
        "images_per_s": 8.0,
        "eta_s": 12.0,
        "gpu_gib": 2.0,
        "seconds": {"generate": 1.0, "wait": 3.0, "update": 2.0},
    },
)


class WaitingRanker(KnownAnswersRanker):
    """Waits for three groups of one reward, of which an endpoint has said that one is pending."""

    def list_unanswered(self) -> dict[str, dict[str, float]]:
        return {"people": {"a": 3.0, "b": 7.0, "c": 50.0}}

    def list_pending(self) -> dict[str, RankingBacklog]:
        return {"people": RankingBacklog({"c": 40.0})}


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


def test_a_jobs_series_say_what_its_events_say_and_end_with_it(metrics: WorkerMetrics) -> None:
    """Of two jobs one after the other, only the later one is told of, and at last neither."""

    def value(name: str, job: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"dipole_training_{name}", {"job_id": job, **labels})

    for job in ("first", "second"):
        with metrics.watch_job(job, SPEC):
            for _ in range(2):
                metrics.observe_event(STEP.kind, STEP.data())
            skipped = job_events.GroupSkipped(step=1, group="g", code="no_spread", reason="no spread: all …")
            metrics.observe_event(skipped.kind, skipped.data())
            metrics.observe_event("checkpoint", {"step": 2, "path": "checkpoint-2"})
            metrics.observe_waiting(WaitingRanker())
            assert (value("step", job), value("steps", job)) == (2, 6)
            assert value("reward_mean", job, reward="shapes") == 0.5
            assert value("reward_spread", job, reward="shapes") == 0.1
            assert value("phase_seconds_total", job, phase="wait") == 6.0
            assert value("groups_total", job) == 6
            assert value("skipped_groups_total", job, reason="no_spread") == 1
            assert value("gpu_memory_peak_bytes", job) == 2 * 2**30
            assert value("loss", job) is None
            assert (value("checkpoint_timestamp_seconds", job) or 0) > 0
            assert value("waiting_groups", job, reward="people", state="asked") == 2
            assert value("waiting_oldest_seconds", job, reward="people", state="asked") == 7.0
            assert value("waiting_oldest_seconds", job, reward="people", state="pending") == 40.0
            assert metrics.registry.get_sample_value("dipole_worker_training") == 1
    told = {sample.labels.get("job_id") for family in metrics.registry.collect() for sample in family.samples}
    assert told == {None}
    assert metrics.registry.get_sample_value("dipole_worker_training") == 0
