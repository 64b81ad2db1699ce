"""Groups that pass through this machine's memory: a real Redis, real rank workers, and who reads which folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from dipole.broker.rankings import TaskCoordination
from dipole.broker.shared_memory import SharedMemory
from dipole.settings import PlatformSettings

from .ranking_harness import Answer, Call, Endpoints, Harness, collect, good, group, reward, running_rank_worker


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url.removesuffix("/0") + "/12") as client:
        client.flushdb()
        yield client


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> PlatformSettings:
    return PlatformSettings(
        redis_url=redis_url.removesuffix("/0") + "/12", candidate_ttl_s=60, candidate_dir=tmp_path / "shared"
    )


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_groups_pass_through_memory_and_survive_a_killed_rank_worker(
    endpoint: Endpoints, harness: Harness, client: redis.Redis, settings: PlatformSettings
) -> None:
    """kill -9 of the rank worker amid a request: the next one finds the images where they were, and Redis has none."""
    settings.candidate_dir.mkdir()
    folder, seen, reached = SharedMemory(settings.candidate_dir), [], threading.Event()

    def die_first(call: Call) -> Answer:
        seen.append((client.keys("dipole:candidates:*"), len(list(settings.candidate_dir.rglob("*-4x8x8")))))
        reached.set()
        if call.number == 0:
            time.sleep(30)
        return good(call)

    def worker_reads_it() -> bool:
        return TaskCoordination(client, 60).lane_memories() == {folder.id}

    dead = settings.candidate_dir / f"dipole-{os.getuid()}" / "0123"
    dead.mkdir()
    dead.with_suffix(".lock").touch()
    harness.settings = settings
    environment = {"DIPOLE_CANDIDATE_DIR": str(settings.candidate_dir)}
    server = endpoint(die_first)
    with running_rank_worker(settings.redis_url, **environment) as worker:
        wait_until(worker_reads_it)
        ranker = harness.ranker(reward(server, "in-memory"), resend_s=1)
        ranker.submit(group("g"))
        assert reached.wait(60)
        wait_until(lambda: not dead.exists())  # rank workers sweep when a run begins
        lanes = psutil.Process(worker.pid).children()
        worker.kill()
        psutil.wait_procs(lanes, timeout=10)
    with running_rank_worker(settings.redis_url, **environment):
        assert collect(ranker)[0].results["in-memory"].scores == (0.0, 1.0, 2.0, 3.0)
    assert seen == [([], 1), ([], 1)]
    assert len({call.headers["idempotency-key"] for call in server.calls}) == 1
    ranker.collect(0)
    assert not list(settings.candidate_dir.rglob("*-4x8x8"))
    ranker.close()
    assert os.listdir(settings.candidate_dir / f"dipole-{os.getuid()}") == ["id"]


def test_a_rank_worker_with_a_folder_of_its_own_is_served_by_redis(
    endpoint: Endpoints, harness: Harness, client: redis.Redis, settings: PlatformSettings, tmp_path: Path
) -> None:
    """As in another container of this machine: `auto` finds out before it sends, `memory` when images are missed."""
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
    stored: list[int] = []

    def look(call: Call) -> Answer:
        stored.append(len(client.keys("dipole:candidates:*")))
        return good(call)

    server = endpoint(look)
    with running_rank_worker(settings.redis_url, DIPOLE_CANDIDATE_DIR=str(tmp_path / "own")):
        wait_until(lambda: bool(TaskCoordination(client, 60).lane_memories()))
        for choice in ("auto", "memory"):
            harness.settings = settings.model_copy(update={"candidate_store": choice})
            ranker = harness.ranker(reward(server, "elsewhere"), job=choice)
            ranker.submit(group("g"))
            assert (choice == "memory") == bool(list((tmp_path / "shared").rglob("*-4x8x8")))
            assert collect(ranker)[0].results["elsewhere"].failure is None
            ranker.close()
    assert stored == [1, 1]
    assert client.keys("dipole:candidates:*") == []


def test_a_reward_that_reads_the_folder_too_is_sent_no_images(
    endpoint: Endpoints, harness: Harness, settings: PlatformSettings
) -> None:
    """A reference goes to it, and bytes to one that reads another folder; once it misses them, they are sent."""
    settings.candidate_dir.mkdir()
    folder = SharedMemory(settings.candidate_dir)
    harness.settings = settings.model_copy(update={"candidate_store": "memory"})

    def forgets(call: Call) -> Answer:
        return (415, {}, "{}") if int(call.headers["content-length"]) < group("x").images.nbytes else good(call)

    servers = {
        "reads": endpoint(good, memory=folder.id),
        "reads-another": endpoint(good, memory="0123"),
        "misses": endpoint(forgets, memory=folder.id),
    }
    with running_rank_worker(settings.redis_url, DIPOLE_CANDIDATE_DIR=str(settings.candidate_dir)):
        ranker = harness.ranker(*(reward(server, name) for name, server in servers.items()))
        ranker.submit(group("g"))
        (ranked,) = collect(ranker)
    assert {result.scores for result in ranked.results.values()} == {(0.0, 1.0, 2.0, 3.0)}
    was_sent = {
        name: [int(call.headers["content-length"]) > group("x").images.nbytes for call in server.calls]
        for name, server in servers.items()
    }
    assert was_sent == {"reads": [False], "reads-another": [True], "misses": [False, True]}
