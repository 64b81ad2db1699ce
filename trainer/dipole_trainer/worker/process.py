"""The worker's process: signals, the process group, and the worker in it."""

from __future__ import annotations

import importlib
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, cast

from dipole import logs
from dipole.settings import PlatformSettings, load
from dipole.stack import parent_death
from dipole_trainer.distributed.launch import join
from dipole_trainer.ranking.celery_ranker import CeleryRanker
from dipole_trainer.training.interface import Session
from dipole_trainer.worker import followers
from dipole_trainer.worker.followers import MakeRanker
from dipole_trainer.worker.worker import Worker

if TYPE_CHECKING:
    from dipole_trainer.distributed.torch_group import Together


def main(
    settings: PlatformSettings | None = None, session: Session | None = None, make_ranker: MakeRanker = CeleryRanker
) -> None:
    """Run a worker until SIGTERM or SIGINT, or take part in the one that rank 0 runs.

    Without `session`, dipole_trainer.training.session.run, which imports torch.
    """
    logs.configure("worker")
    settings = settings or load(PlatformSettings)
    world = join()
    session = session or cast(
        Session, partial(importlib.import_module("dipole_trainer.training.session").run, world=world)
    )
    if world.size > 1:
        parent_death.die_with(os.getppid())  # the launcher, which gives its processes sessions of their own
    if not world.leads:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # rank 0 gets it too, and ends the run for all
        followers.follow(cast("Together", world), settings, session, make_ranker)
    else:
        worker = Worker(settings, session, make_ranker, world=world)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stopping.set())
        worker.run()
    world.close()
