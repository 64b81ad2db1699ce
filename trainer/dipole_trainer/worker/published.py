"""What a worker publishes of itself: that it lives, four times in a lease, and what it can load, when that changes. A
thread of its own.

Beside the job's heartbeats, and not in them: looking for weights may take long on a slow disk, and a lease must not run
out for it. A database that is away is everybody's trouble, and no reason to end a training.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole.settings import PlatformSettings
from dipole_trainer.compute import gpu
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.trackers.installed import list_installed_trackers
from dipole_trainer.weights.inventory import Inventory, list_local_weights

log = structlog.get_logger()

VERSION = importlib.metadata.version("dipole")
LISTING_PERIOD_S = 1.0  # of looks for weights; a job may be created so soon after they were fetched
LISTING_SHARE = 50  # at most one in so many seconds is spent looking


class WorkerReport:
    """One worker's row, while it runs. `start`, then `stop`, which takes the row away."""

    def __init__(self, name: str, registry: WorkerRegistry, settings: PlatformSettings) -> None:
        self._name, self._registry, self._settings = name, registry, settings
        self._stopping = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="worker report", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        # not joined: it may be importing torch, or looking for weights on a slow disk
        with self._writing:
            try:
                self._registry.remove(self._name)
            except SQLAlchemyError as error:
                log.warning("worker_not_withdrawn", error=describe_database_error(error))  # its row expires

    def _run(self) -> None:
        devices, trackers = _describe_devices(), list_installed_trackers()
        lease_s = self._settings.lease_s
        published, list_at, publish_at = None, 0.0, 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            if began >= list_at:
                inventory = list_local_weights(self._settings.models_dir)
                list_at = began + max(LISTING_PERIOD_S, LISTING_SHARE * (time.monotonic() - began))
            if inventory != published or began >= publish_at:
                self._publish(inventory, devices, trackers)
                published, publish_at = inventory, began + lease_s / 4
            self._stopping.wait(min(LISTING_PERIOD_S, lease_s / 4))

    def _publish(self, inventory: Inventory, devices: list[dict[str, Any]], trackers: list[str]) -> None:
        with self._writing:
            if self._stopping.is_set():
                return
            try:
                self._registry.publish(
                    self._name,
                    inventory,
                    devices,
                    trackers=trackers,
                    version=VERSION,
                    lease_s=self._settings.lease_s,
                )
            except SQLAlchemyError as error:
                log.warning("worker_not_published", error=describe_database_error(error))


def _describe_devices() -> list[dict[str, Any]]:
    try:
        return gpu.describe_devices()
    except RuntimeError as error:  # a driver's
        log.warning("devices_unknown", error=str(error))
        return []
