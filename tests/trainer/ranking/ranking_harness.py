"""What tests of ranking share: scripted reward endpoints, the rank worker as a process, rankers on one Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

import numpy as np
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint as Described
from dipole.settings import PlatformSettings
from dipole.vault import Vault
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.ranking.score_cache import ScoreCache
from dipole_trainer.spec import RewardSpec

from ...quiet_handler import QuietHandler

K = 4


# ---- endpoints ----------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One POST /v1/rank as an endpoint saw it; `number` counts from 0."""

    number: int
    prompt: str
    ids: list[str]
    headers: dict[str, str]
    progress: float | None = None


Answer = tuple[int, dict[str, str], str]
Behaviour = Callable[[Call], Answer]


def ranking(call: Call, scores: list[Any] | None = None, revision: str = "r1") -> str:
    """A well-formed ranking; `scores` may be anything JSON can say, NaN included."""
    given = [float(index) for index in range(len(call.ids))] if scores is None else scores
    results = [
        {
            "id": call.ids[min(index, len(call.ids) - 1)],
            "score": score,
            "rank": None if score is None else 1,
            "sub_scores": None if score is None else {"half": 0.5},
            "error": {"code": "unreadable", "message": "no face"} if score is None else None,
        }
        for index, score in enumerate(given)
    ]
    names = {"model": "m", "model_revision": revision, "recipe_version": "v1"}
    return json.dumps(
        {"id": "rk_1", "object": "ranking", "created": 1, "status": "completed", "results": results, **names}
    )


def good(call: Call) -> Answer:
    return 200, {}, ranking(call)


@dataclass
class Endpoint:
    """A reward server in a thread. `behave` decides each answer; `calls` keeps what was asked."""

    behave: Behaviour
    port: int = 0
    calibrated: bool = True
    verified: bool | None = None
    wants: tuple[str, ...] = ()
    deterministic: bool | None = None
    memory: str | None = None  # id of the folder that it says it reads
    revision: str = "r1"
    host: str = "127.0.0.1"
    slept: list[int] | None = None  # calls that it had answered when it was put to sleep; None: it knows no such route
    hosts: list[str] = field(default_factory=list)  # of requests that carried a key, GETs too
    calls: list[Call] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        endpoint, lock = self, threading.Lock()

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def parse_request(self) -> bool:
                parsed = super().parse_request()
                if parsed and "Authorization" in self.headers:
                    endpoint.hosts.append(self.headers["Host"])
                return parsed

            def do_GET(self) -> None:
                info = {"name": "r", "model": "m", "model_revision": endpoint.revision, "recipe_version": "v1"}
                types = ["application/x-npy", "image/png"]
                ranked = self.path.startswith("/v1/rankings/")
                if ranked:
                    status, headers, body = endpoint.behave(Call(-1, "", [f"c{k}" for k in range(K)], {}))
                    self.answer(status, headers, body)
                else:
                    said = {
                        "calibrated": endpoint.calibrated,
                        "verified": endpoint.verified,
                        "wants": endpoint.wants,
                        "deterministic": endpoint.deterministic,
                        "memory": endpoint.memory,
                    }
                    self.answer(200, {}, json.dumps({**info, "media_types": types, **said}))

            def do_POST(self) -> None:
                if self.path == "/v1/sleep":
                    if endpoint.slept is None:
                        return self.answer(404, {}, "{}")
                    endpoint.slept.append(len(endpoint.calls))
                    return self.answer(200, {}, json.dumps({"object": "reward.weights", "status": "asleep"}))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(re.search(rb'\{"prompt".*?\]\s*(?:,\s*"[a-z_]+":[^\n]*)?\}', body)[0])  # type: ignore[index]
                ids = [candidate["id"] for candidate in request["candidates"]]
                with lock:
                    call = Call(
                        len(endpoint.calls),
                        request["prompt"],
                        ids,
                        {k.lower(): v for k, v in self.headers.items()},
                        request.get("progress"),
                    )
                    endpoint.calls.append(call)
                self.answer(*endpoint.behave(call))

            def answer(self, status: int, headers: dict[str, str], body: str) -> None:
                data = body.encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer((self.host, self.port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


Endpoints = Callable[..., Endpoint]


# ---- ranker and rank worker ---------------------------------------------------------------------------------------


def start_rank_worker(redis_url: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dipole.cli", "serve", "rank-worker"]
    return subprocess.Popen(command, env={**os.environ, "DIPOLE_REDIS_URL": redis_url, **environment})


@contextlib.contextmanager
def running_rank_worker(redis_url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with start_rank_worker(redis_url, **environment) as process:
        try:
            yield process
        finally:
            process.terminate()


@dataclass
class Harness:
    """Makes rankers on one Redis, with names of their own, and closes them."""

    settings: PlatformSettings
    ranked: list[tuple[str, str, RewardResult]] = field(default_factory=list)
    rankers: list[CeleryRanker] = field(default_factory=list)

    def ranker(
        self,
        *rewards: ResolvedReward,
        job: str = "job",
        resend_s: float = 2.0,
        vault: Vault | None = None,
        score_cache: ScoreCache | None = None,
    ) -> CeleryRanker:
        ranker = CeleryRanker(
            self.settings,
            job,
            rewards,
            on_ranked=lambda group, reward, result: self.ranked.append((group.id, reward, result)),
            score_cache=score_cache,
            resend_s=resend_s,
            vault=vault,
        )
        self.rankers.append(ranker)
        return ranker

    def close(self) -> None:
        for ranker in self.rankers:
            ranker.close()


def reward(
    endpoint: Endpoint | str, name: str, *, options: dict[str, Any] | None = None, **spec: Any
) -> ResolvedReward:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    described = Described(url=url, key=SecretStr("a-key-of-the-endpoint"), options=options or {})
    return ResolvedReward(RewardSpec(name=name, **spec), described)


def group(name: str, value: int = 7) -> CandidateGroup:
    images = np.full((K, 8, 8, 3), value, np.uint8)
    return CandidateGroup(
        id=name, step=0, prompt=f"prompt {name}", metadata={"tag": "counting"}, images=images, seeds=range(K)
    )


def reasons(ranker: CeleryRanker) -> list[str]:
    """Why what is in flight has no answer yet."""
    return [request.reason for request in ranker._requests.values()]


def collect(ranker: CeleryRanker, count: int = 1, seconds: float = 90) -> list[RankedGroup]:
    got: list[RankedGroup] = []
    until = time.monotonic() + seconds
    while len(got) < count and time.monotonic() < until:
        if (ranked := ranker.collect(until - time.monotonic())) is not None:
            got.append(ranked)
    assert len(got) == count
    return got
