"""The worker's process: signals, the process group, and the worker in it."""

from __future__ import annotations

import importlib
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, cast

from dipole import logs, tracing
from dipole.settings import MetricsSettings, PlatformSettings, load_settings
from dipole.stack import parent_death
from dipole.web.metrics_server import serve_metrics
from dipole_trainer.distributed.launch import current_group
from dipole_trainer.ranking.celery_ranker import CeleryRanker
from dipole_trainer.training.interface import RunSession
from dipole_trainer.worker import followers
from dipole_trainer.worker.followers import MakeRanker
from dipole_trainer.worker.worker import Worker

if TYPE_CHECKING:
    from dipole_trainer.distributed.torch_group import TorchProcessGroup


def run_worker(
    settings: PlatformSettings | None = None, session: RunSession | None = None, make_ranker: MakeRanker = CeleryRanker
) -> None:
    """Run a worker until SIGTERM or SIGINT, or take part in the one that rank 0 runs.

    Without `session`, dipole_trainer.training.session.run_session, which imports torch.
    """
    logs.configure_logging("worker")
    tracing.configure_tracing("worker")
    settings = settings or load_settings(PlatformSettings)
    processes = current_group()
    session = session or cast(
        RunSession, partial(importlib.import_module("dipole_trainer.training.session").run_session, processes=processes)
    )
    if processes.size > 1:
        parent_death.die_with_parent(os.getppid())  # the launcher, which gives its processes sessions of their own
    if not processes.is_main:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # rank 0 gets it too, and ends the run for all
        followers.follow_main(cast("TorchProcessGroup", processes), settings, session, make_ranker)
    else:
        worker = Worker(settings, session, make_ranker, processes=processes)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop_requested.set())
        serve_metrics(load_settings(MetricsSettings), worker.metrics.registry)
        worker.run()
    processes.close()
