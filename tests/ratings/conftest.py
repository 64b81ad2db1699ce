"""The rating service: its queue over either database, a clock in the test's hand; its app in-process; its process."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from dipole_ratings.api.dependencies import RatingParts
from dipole_ratings.app import create_app
from dipole_ratings.database.engine import open_database, upgrade_database
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.settings import RatingsSettings

SERVE = [sys.executable, "-m", "dipole.cli", "serve", "ratings"]
QUIET: dict[str, Any] = {"ratings_undo_s": 0.0, "ratings_gold_share": 0.0, "ratings_repeat_share": 0.0}
ServeApp = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
MakeQueue = Callable[..., tuple[RatingParts, "HandClock"]]


class HandClock:
    """Unix seconds, moved by hand."""

    def __init__(self) -> None:
        self.time = 1_790_000_000.0

    def __call__(self, session: Session) -> float:
        return self.time


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
def ratings_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ratings database of either kind."""
    return f"sqlite:///{tmp_path}/ratings.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def make_queue() -> Iterator[MakeQueue]:
    """`parts, clock = make_queue(url, ratings_undo_s=5)`: the queue's parts, without a server."""
    made: list[RatingParts] = []

    def make(url: str, **settings: Any) -> tuple[RatingParts, HandClock]:
        upgrade_database(url)
        clock = HandClock()
        chosen = RatingsSettings(ratings_database_url=url, **{**QUIET, **settings})
        context = QueueContext(open_database(url), chosen, clock, random.Random(7))
        made.append(RatingParts.over(context))
        return made[-1], clock

    yield make
    for each in made:
        each.database.close()


@pytest.fixture
def serve_app(tmp_path: Path) -> ServeApp:
    """`async with serve_app(ratings_min=2) as client:` is the app over SQLite; `client.parts` is its queue."""

    @asynccontextmanager
    async def serve(callback_transport: Any = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        chosen = {"ratings_database_url": f"sqlite:///{tmp_path}/ratings.db", **QUIET, **settings}
        app = create_app(RatingsSettings(**chosen), callback_transport=callback_transport)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8450") as client,
        ):
            client.parts = app.state.parts  # type: ignore[attr-defined]
            yield client

    return serve


def environment(url: str, port: int, **more: str) -> dict[str, str]:
    """Settings of one process of the service, and nothing of the caller's own DIPOLE_ settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")}
    ours = {"PORT": str(port), "DATABASE_URL": url, "UNDO_S": "0", "GOLD_SHARE": "0", "REPEAT_SHARE": "0", **more}
    return {**own, **{f"DIPOLE_RATINGS_{name}": value for name, value in ours.items()}}
