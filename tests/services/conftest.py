"""A reward service in-process (the real app through ASGITransport, its lifespan run) and in a process of its own."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole_rewards.app import create_app
from dipole_rewards.judging import chat
from dipole_rewards.settings import RewardSettings

from ..processes import serving, start
from .judging import scripted_judge

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
        command = partial(serve_command, reward)
        with serving(command, tmp_path / f"log-{uuid.uuid4().hex}", env=reward_env(settings)) as (url, _):
            yield url

    return serve


def serve_command(reward: str, port: int) -> list[str]:
    return [sys.executable, "-m", "dipole.cli", "rewards", "serve", reward, "--port", str(port)]


def reward_env(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"DIPOLE_REWARD_{name}": value for name, value in settings.items()}


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """`refused("module:Class", WEIGHTS="…")`: the last thing that a service says which must not start."""

    def run(reward: str, **settings: str) -> str:
        log = tmp_path / "refused"
        process = start(serve_command(reward, 0), log, env=reward_env(settings))
        try:
            assert process.wait(120) == 1, log.read_text()
        finally:
            process.kill()
        return log.read_text().strip().splitlines()[-1]

    return run


@pytest.fixture(name="start")
def start_judge() -> Iterator[scripted_judge.Start]:
    """`start(judging)` is a scripted judge that runs until the test ends."""
    with scripted_judge.servers() as begin:
        yield begin


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge's repeats follow quickly."""
    monkeypatch.setattr(chat, "FIRST_BACKOFF_S", 0.02)
