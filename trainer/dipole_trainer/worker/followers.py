"""The processes of a worker but its first: they wait for a job, train it with the others, and wait for the next.

Rank 0 is the Worker, which alone knows the database. It tells the others of a job by its id, its settings and its
rewards' endpoints with their keys, which stay in memory. They draw and have ranked as rank 0 does, over Redis, and what
they would report goes to rank 0 with the next exchange. They write no file, and read those that offline jobs train on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dipole import tracing
from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole_trainer.compute import gpu
from dipole_trainer.distributed.failures import PeerLost, RunEnded
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.jobs.ranking_ledger import LEDGER_REPORT, make_ledger_entry
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup, Ranker, RewardResult
from dipole_trainer.ranking.in_flight import OnRanked
from dipole_trainer.ranking.score_cache import ScoreCache
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.training.interface import no_weight_changes

if TYPE_CHECKING:
    from dipole_trainer.distributed.torch_group import TorchProcessGroup
    from dipole_trainer.training.interface import RunSession

MakeRanker = Callable[[PlatformSettings, str, Sequence[ResolvedReward], OnRanked, ScoreCache | None], Ranker]
"""Makes a job's ranker. Whoever made it calls its `close()` once the job has left this process, however it left."""

log = structlog.get_logger()


def job_message(job_id: str, spec: TrainSpec, rewards: Sequence[ResolvedReward]) -> dict[str, Any]:
    """What rank 0 says when it begins one."""
    endpoints = [
        {
            "spec": reward.spec.model_dump(mode="json"),
            "endpoint": reward.endpoint.to_record(),
        }
        for reward in rewards
    ]
    job = {"id": job_id, "spec": spec.model_dump_json(), "rewards": endpoints}
    return {"job": {**job, "trace": tracing.current_headers()}}


END_MESSAGE = {"end": True}  # what it says when there will be no other


def follow_main(
    processes: TorchProcessGroup, settings: PlatformSettings, session: RunSession, make_ranker: MakeRanker
) -> None:
    """Train whatever rank 0 begins, until it says END_MESSAGE."""
    while (said := processes.all_gather({})[0]) != END_MESSAGE:
        if "job" in said:
            _train_job(processes, settings, session, make_ranker, said["job"])
            gpu.free_memory()


def run_as_follower(processes: ProcessGroup, train: Callable[[], object]) -> None:
    """`train`, until rank 0 leaves the run; or until it raises, which all are told.

    A process whose GPU is lost tells nothing: it ends, and all meet again in new processes.
    """
    problem = None
    try:
        train()
    except RunEnded:
        pass
    except PeerLost:
        raise
    except Exception as error:
        log.exception("run_failed", process=processes.rank)
        if gpu.is_context_lost():
            raise
        problem = error
    processes.leave_run(problem)


def _resolved_reward(said: Mapping[str, Any]) -> ResolvedReward:
    return ResolvedReward(RewardSpec.model_validate(said["spec"]), Endpoint(**said["endpoint"]))


def _offline_data(spec: TrainSpec, settings: PlatformSettings) -> AbstractContextManager[Path | None]:
    """What an offline job trains on, from the store that this process has settings for."""
    return (
        ArtifactStore(settings.artifacts_url, settings.home / "work").offline_data(spec)
        if spec.is_offline
        else nullcontext()
    )


@contextmanager
def _make_workdir(spec: TrainSpec, job_id: str, settings: PlatformSettings) -> Iterator[Path]:
    """A folder with nothing in it but what is read from a job's own: the weights that it starts from."""
    with tempfile.TemporaryDirectory(prefix="dipole-") as folder:
        if spec.initial_checkpoint is None:
            yield Path(folder)
            return
        store = ArtifactStore(settings.artifacts_url, settings.home / "work")
        with store.local_path(job_layout.job_path(job_id, job_layout.INITIAL_FOLDER)) as initial:
            (Path(folder) / job_layout.INITIAL_FOLDER).symlink_to(initial)
            yield Path(folder)


def _train_job(
    processes: TorchProcessGroup,
    settings: PlatformSettings,
    session: RunSession,
    make_ranker: MakeRanker,
    said: Mapping[str, Any],
) -> None:
    def report_ranking(group: CandidateGroup, reward: str, result: RewardResult) -> None:
        processes.report(LEDGER_REPORT, make_ledger_entry(group, reward, result))

    def run_session() -> None:
        spec = TrainSpec.from_stored(said["spec"])
        rewards = [_resolved_reward(each) for each in said["rewards"]]
        ranker = make_ranker(settings, said["id"], rewards, report_ranking, None)
        try:
            with _offline_data(spec, settings) as data, _make_workdir(spec, said["id"], settings) as workdir:
                session(
                    spec,
                    job_id=said["id"],
                    workdir=workdir,
                    models_dir=settings.models_dir,
                    ranker=ranker,
                    on_event=processes.report,
                    control=lambda: "run",
                    data=data,
                    candidates_max_gib=settings.candidates_max_gib,
                    take_weight_changes=no_weight_changes,
                )
        finally:
            ranker.close()

    parent = said["trace"].get(tracing.TRACEPARENT)
    with (
        structlog.contextvars.bound_contextvars(job_id=said["id"], process=processes.rank),
        tracing.trace_span("follow", parent=parent, job_id=said["id"], process=processes.rank),
    ):
        run_as_follower(processes, run_session)
