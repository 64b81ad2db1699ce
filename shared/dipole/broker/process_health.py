"""Whether a process of the platform on this host lives, as the probes of orchestrators ask.

The rank worker and the sampler prove it by a heartbeat in Redis, without which they can do nothing; the trainer worker,
which may train for days without Redis, by a file (dipole_trainer.worker.health). The first two touch files as well, for
probes of containers, which must not start a client of Redis every few seconds (dipole.stack.container_probe).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import structlog
from redis import Redis
from redis.exceptions import RedisError

from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.errors import DipoleError
from dipole.settings import PlatformSettings

log = structlog.get_logger()

HEARTBEAT_TTL_S = 30.0  # a heartbeat older than this is none
PROBE_TIMEOUT_S = 3.0  # for Redis to answer a probe, which has seconds itself


class HealthFiles:
    """Two files of a process that needs Redis: NAME while it beats, NAME-live also while Redis is away."""

    def __init__(self, settings: PlatformSettings, name: str) -> None:
        self._ready, self._live = settings.health_file(name), settings.health_file(f"{name}-live")

    def touch(self, *, ready: bool) -> None:
        for path in (self._live, self._ready) if ready else (self._live,):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                # a full disk ends no process: it is unhealthy for as long
                log.warning("health_file_not_touched", path=str(path), error=str(error))


class ProcessUnhealthy(DipoleError):
    """The process of this host that was asked for gives no sign of life."""

    slug = "not-healthy"


def check_heartbeat(
    process: str, redis_url: str, has_heartbeat: Callable[[Redis, str], bool], *, live: bool = False
) -> None:
    """Raise ProcessUnhealthy unless `has_heartbeat(client, this host)`. With `live` Redis may be away: a restart of the
    process would not bring it back.
    """
    client = connect_redis(redis_url, connect_timeout_s=PROBE_TIMEOUT_S, timeout_s=PROBE_TIMEOUT_S)
    host = socket.gethostname()
    try:
        if has_heartbeat(client, host):
            return
    except RedisError as error:
        if live:
            return
        raise ProcessUnhealthy(describe_redis_error(error)) from error
    raise ProcessUnhealthy(f"no {process} on {host} within the last {HEARTBEAT_TTL_S:g} s")
