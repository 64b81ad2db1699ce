"""Whether this host's worker lives: a file that it touches. No torch, and nothing of the worker."""

from __future__ import annotations

import json
import os
import socket
import time

import structlog

from dipole.errors import DipoleError
from dipole.private_files import make_private_folder
from dipole.settings import PlatformSettings

log = structlog.get_logger()

HEALTH_TIMEOUT_S = 120.0


class WorkerUnhealthy(DipoleError):
    """The worker of this host has not touched its file lately."""

    slug = "not-healthy"


def touch_health_file(settings: PlatformSettings) -> None:
    """Say that this worker lives."""
    path = settings.worker_health_file
    try:
        make_private_folder(path.parent)
        path.write_text(json.dumps({"pid": os.getpid(), "time": time.time()}))
    except OSError as error:
        # a full disk must not end a training; who cannot write for long is found unhealthy
        log.warning("health_file_not_written", file=str(path), error=str(error))


def check_health(settings: PlatformSettings) -> None:
    """Raises WorkerUnhealthy unless this host's worker touched its file within HEALTH_TIMEOUT_S seconds."""
    try:
        if time.time() - settings.worker_health_file.stat().st_mtime < HEALTH_TIMEOUT_S:
            return
    except FileNotFoundError:
        pass
    raise WorkerUnhealthy(f"no worker on {socket.gethostname()} within the last {HEALTH_TIMEOUT_S:g} s")
