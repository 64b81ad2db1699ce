"""The processes of a worker but its first: they wait for a job, train it with the others, and wait for the next.

Rank 0 is the Worker, which alone knows the database. It tells the others of a job by its id, its settings and its
rewards' endpoints with their keys, which stay in memory. They draw and have ranked as rank 0 does, over Redis, and what
they would report goes to rank 0 with the next exchange. They write no file, and read those that offline jobs train on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole_trainer.compute import gpu
from dipole_trainer.distributed.failures import Over, ProcessLost
from dipole_trainer.distributed.group import World
from dipole_trainer.jobs.ranking_ledger import entry
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.groups import Group, Ranker, RewardResult
from dipole_trainer.ranking.in_flight import OnRanked
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.storage.artifacts import Artifacts

if TYPE_CHECKING:
    from dipole_trainer.distributed.torch_group import Together
    from dipole_trainer.training.interface import Session

MakeRanker = Callable[[PlatformSettings, str, Sequence[ResolvedReward], OnRanked], Ranker]

log = structlog.get_logger()


def job(job_id: str, spec: TrainSpec, rewards: Sequence[ResolvedReward]) -> dict[str, Any]:
    """What rank 0 says when it begins one."""
    endpoints = [
        {
            "spec": reward.spec.model_dump(mode="json"),
            "endpoint": reward.endpoint.record(),
        }
        for reward in rewards
    ]
    return {"job": {"id": job_id, "spec": spec.model_dump_json(), "rewards": endpoints}}


END = {"end": True}  # what it says when there will be no other


def follow(world: Together, settings: PlatformSettings, session: Session, make_ranker: MakeRanker) -> None:
    """Train whatever rank 0 begins, until it says END."""
    while (said := world.exchange({})[0]) != END:
        if "job" in said:
            _train(world, settings, session, make_ranker, said["job"])
            gpu.free()


def take_part(world: World, train: Callable[[], object]) -> None:
    """`train`, until rank 0 leaves the run; or until it raises, which all are told.

    A process whose GPU is lost tells nothing: it ends, and all meet again in new processes.
    """
    problem = None
    try:
        train()
    except Over:
        pass
    except ProcessLost:
        raise
    except Exception as error:
        log.exception("run_failed", process=world.rank)
        if gpu.lost():
            raise
        problem = error
    world.leave(problem)


def _reward(said: Mapping[str, Any]) -> ResolvedReward:
    return ResolvedReward(RewardSpec.model_validate(said["spec"]), Endpoint(**said["endpoint"]))


def _data(spec: TrainSpec, settings: PlatformSettings) -> AbstractContextManager[Path | None]:
    """What an offline job trains on, from the store that this process has settings for."""
    return Artifacts(settings.artifacts_url, settings.home / "work").data(spec) if spec.offline else nullcontext()


def _train(
    world: Together, settings: PlatformSettings, session: Session, make_ranker: MakeRanker, said: Mapping[str, Any]
) -> None:
    def on_ranked(group: Group, reward: str, result: RewardResult) -> None:
        world.tell("ranked", entry(group, reward, result))

    def train() -> None:
        spec = TrainSpec.stored(said["spec"])
        ranker = make_ranker(settings, said["id"], [_reward(each) for each in said["rewards"]], on_ranked)
        try:
            with _data(spec, settings) as data, tempfile.TemporaryDirectory(prefix="dipole-") as nothing:
                session(
                    spec,
                    job_id=said["id"],
                    workdir=Path(nothing),
                    models_dir=settings.models_dir,
                    rank=ranker,
                    on_event=world.tell,
                    control=lambda: "run",
                    data=data,
                )
        finally:
            (ranker.close if isinstance(ranker, CeleryRanker) else ranker.cancel)()

    with structlog.contextvars.bound_contextvars(job_id=said["id"], process=world.rank):
        take_part(world, train)
