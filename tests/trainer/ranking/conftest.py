"""Fixtures of the tests of ranking: scripted endpoints, a rank worker, rankers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from dipole.settings import PlatformSettings

from .ranking_harness import Behaviour, Endpoint, Endpoints, Harness, good, start_rank_worker


@pytest.fixture
def endpoint() -> Iterator[Endpoints]:
    made: list[Endpoint] = []

    def make(behave: Behaviour = good, port: int = 0, **more: Any) -> Endpoint:
        made.append(Endpoint(behave, port, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def rank_worker(redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    with start_rank_worker(redis_url) as process:
        yield process
        process.terminate()


@pytest.fixture
def harness(redis_url: str) -> Iterator[Harness]:
    harness = Harness(PlatformSettings(redis_url=redis_url, candidate_ttl_s=60))
    yield harness
    harness.close()
