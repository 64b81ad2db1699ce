"""A reward service in-process (the real app through ASGITransport, its lifespan run) and in a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole_rewards.app import create_app
from dipole_rewards.settings import RewardSettings

COLOURFULNESS = "dipole_rewards.rewards.colourfulness:Colourfulness"
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
Process = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def serve() -> Serve:
    """`async with serve(reward="module:Class", reward_max_candidates=3) as client:`"""
    return _serve


@asynccontextmanager
async def _serve(
    *, ready: bool = True, callback_transport: httpx.AsyncBaseTransport | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(RewardSettings(**{"reward": COLOURFULNESS, **settings}), callback_transport=callback_transport)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as client,
    ):
        while ready and (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield client


@pytest.fixture
def serve_process(tmp_path: Path) -> Process:
    """`with serve_process("module:Class", WEIGHTS="…") as url:`, where WEIGHTS is DIPOLE_REWARD_WEIGHTS."""

    @contextmanager
    def serve(reward: str, **settings: str) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log, url = tmp_path / f"log-{port}", f"http://127.0.0.1:{port}"
        process = start_process(log, reward, "--port", str(port), **settings)
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.kill()
            process.wait()

    return serve


def start_process(log: Path, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
    """`dipole rewards serve ARGUMENTS`, what it says in `log`."""
    own = {f"DIPOLE_REWARD_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "dipole.cli", "rewards", "serve", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, env={**os.environ, **own}, stdout=out, stderr=out)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """`refused("module:Class", WEIGHTS="…")`: the last thing that a service says which must not start."""

    def run(reward: str, **settings: str) -> str:
        log = tmp_path / "refused"
        process = start_process(log, reward, "--port", "0", **settings)
        try:
            assert process.wait(120) == 1, log.read_text()
        finally:
            process.kill()
        return log.read_text().strip().splitlines()[-1]

    return run
