"""What a worker tells Prometheus: its jobs, and of the one that it trains now what the job's events say.

Series of a job have its id as a label, and go when the worker leaves it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dipole.protocol import job_events
from dipole_trainer.ranking.groups import Ranker
from dipole_trainer.spec import TrainSpec

GIB = 2**30
JOB_STATES = ("succeeded", "failed", "cancelled", "paused", "queued", "lost")


class WorkerMetrics:
    """Written by the thread that trains, read by the metrics server's."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.jobs = Counter("dipole_worker_jobs", "Jobs that the worker left, by state.", ["state"], registry=registry)
        for state in JOB_STATES:  # from 0 on, so that the first is seen to have come
            self.jobs.labels(state)
        self.is_training = Gauge("dipole_worker_training", "1 while the worker trains a job.", registry=registry)
        self._of_job: list[Counter | Gauge] = []

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            self._of_job.append(
                made := Counter(f"dipole_training_{name}", meaning, ["job_id", *labels], registry=registry)
            )
            return made

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            self._of_job.append(
                made := Gauge(f"dipole_training_{name}", meaning, ["job_id", *labels], registry=registry)
            )
            return made

        self.started = gauge("started_timestamp_seconds", "When the worker took the job up.")
        self.step = gauge("step", "The last finished step.")
        self.steps = gauge("steps", "Steps of the job.")
        self.step_at = gauge("step_timestamp_seconds", "When the last step was finished.")
        self.checkpoint_at = gauge("checkpoint_timestamp_seconds", "When the last checkpoint was stored.")
        self.eta = gauge("eta_seconds", "Time that the remaining steps will take at the rate so far.")
        self.loss = gauge("loss", "Training loss of the last step.")
        self.reward_mean = gauge("reward_mean", "Mean score of the last step's candidates.", "reward")
        self.reward_spread = gauge("reward_spread", "Mean over groups of the scores' standard deviation.", "reward")
        self.staleness = gauge("staleness_steps", "Most updates since a group of the last step was drawn.")
        self.images_per_second = gauge("images_per_second", "Candidates trained on, since the worker took the job up.")
        self.gpu_memory = gauge("gpu_memory_peak_bytes", "Most memory of the GPU that tensors have held.")
        self.phase_seconds = counter("phase_seconds", "Time spent, by phase: generate, wait, update.", "phase")
        self.groups = counter("groups", "Groups that steps consisted of.")
        self.skipped = counter("skipped_groups", "Groups that were not trained on, by reason.", "reason")
        self.left_out = counter(
            "rewards_left_out", "Groups that went on without a reward; not those of a silent one.", "reward"
        )
        self._waiting = _WaitingCollector()
        registry.register(self._waiting)

    @contextlib.contextmanager
    def watch_job(self, job_id: str, spec: TrainSpec) -> Iterator[None]:
        """While a job is trained. Its series are gone afterwards."""
        self._job_id, self._groups_a_step = job_id, spec.prompts_per_step
        self.is_training.set(1)
        self.started.labels(job_id).set_to_current_time()
        self.steps.labels(job_id).set(spec.steps)
        try:
            yield
        finally:
            self.is_training.set(0)
            for each in self._of_job:
                each.clear()
            self._waiting.seconds = {}

    def observe_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take what an event says of the job."""
        if kind == job_events.StepFinished.kind:
            self._observe_step(data)
        elif kind == job_events.CheckpointWritten.kind:
            self.checkpoint_at.labels(self._job_id).set_to_current_time()
        elif kind == job_events.GroupSkipped.kind:
            self.skipped.labels(self._job_id, data["code"]).inc()
        elif kind == job_events.RewardLeftOut.kind:
            self.left_out.labels(self._job_id, data["reward"]).inc()

    def observe_waiting(self, ranker: Ranker) -> None:
        """Take whom the training waits for now. Called by the thread that uses the ranker."""
        pending, found = ranker.list_pending(), {}
        for reward, groups in ranker.list_unanswered().items():
            held = pending[reward].waiting if reward in pending else {}
            found[self._job_id, reward, "asked"] = [each for group, each in groups.items() if group not in held]
            found[self._job_id, reward, "pending"] = list(held.values())
        self._waiting.seconds = found

    def _observe_step(self, data: Mapping[str, Any]) -> None:
        job = self._job_id
        figures = {
            self.step: data["step"],
            self.step_at: time.time(),
            self.eta: data.get("eta_s"),
            self.loss: data.get("loss"),
            self.staleness: data.get("staleness"),
            self.images_per_second: data.get("images_per_s"),
            self.gpu_memory: data["gpu_gib"] * GIB if "gpu_gib" in data else None,
        }
        for gauge, value in figures.items():
            if value is not None:
                gauge.labels(job).set(value)
        for gauge, name in ((self.reward_mean, "rewards"), (self.reward_spread, "spread")):
            for reward, value in (data.get(name) or {}).items():
                gauge.labels(job, reward).set(value)
        for phase, seconds in (data.get("seconds") or {}).items():
            self.phase_seconds.labels(job, phase).inc(seconds)
        self.groups.labels(job).inc(self._groups_a_step)


class _WaitingCollector(Collector):
    """Groups without an answer. `seconds` that each has waited, by job, reward and state, is replaced as a whole."""

    def __init__(self) -> None:
        self.seconds: Mapping[tuple[str, str, str], Sequence[float]] = {}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        groups, oldest = self._families()
        for values, seconds in self.seconds.items():
            groups.add_metric(values, len(seconds))
            oldest.add_metric(values, max(seconds, default=0.0))
        yield from (groups, oldest)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        labels = ["job_id", "reward", "state"]
        return (
            GaugeMetricFamily(
                "dipole_training_waiting_groups",
                "Groups without an answer: asked, or pending at the endpoint.",
                labels=labels,
            ),
            GaugeMetricFamily(
                "dipole_training_waiting_oldest_seconds", "How long the oldest of them has waited.", labels=labels
            ),
        )
