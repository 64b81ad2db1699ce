"""A reward service in-process: the real app through ASGITransport, its lifespan run, the reward loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest

from dipole_rewards.app import create_app
from dipole_rewards.settings import RewardSettings

COLOURFULNESS = "dipole_rewards.rewards.colourfulness:Colourfulness"
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


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
