"""Rewards of other kinds and endpoints with certificates, through CeleryRanker, Redis and a rank worker process."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import trustme
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.ranking.in_flight import OnRanked
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.training import session

from ...foreign_servers import CosmosServer, FlowFactoryServer

K = 3
KEY = "a-key-of-the-judge-1234"


@dataclass
class Judge:
    """One server that speaks vLLM's and UniRL's /score: an image's score is its brightness, or what `refuse` says."""

    context: ssl.SSLContext | None = None
    refuse: tuple[int, dict[str, Any]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "judge-2b"}], "rewards": ["hpsv3"]})

            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["content-length"])))
                judge.asked.append(said)
                self.answer(*(judge.refuse or (200, score(said))))

            def answer(self, status: int, said: dict[str, Any]) -> None:
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return

        self.server = Quiet(("127.0.0.1", 0), Handler)
        if self.context is not None:
            self.server.socket = self.context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if self.context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def score(said: dict[str, Any]) -> dict[str, Any]:
    if "documents" in said:
        scores = [{"index": index, "score": float(index)} for index in range(len(said["documents"]))]
        return {"id": "s", "created": 1, "model": said["model"], "data": scores, "usage": {}}
    return {"results": [{"hpsv3": {"hpsv3": -float(index)}} for index in range(len(said["requests"]))]}


@pytest.fixture
def judges() -> Iterator[Callable[..., Judge]]:
    made: list[Judge] = []

    def make(**options: Any) -> Judge:
        made.append(Judge(**options))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@dataclass
class Platform:
    """Settings of one Redis database with a rank worker of its own, whose log goes to a file."""

    settings: PlatformSettings
    tls_dir: Path
    log: Path
    rankers: list[CeleryRanker] = field(default_factory=list)

    def ranker(self, *rewards: ResolvedReward, on_ranked: OnRanked | None = None) -> CeleryRanker:
        self.rankers.append(CeleryRanker(self.settings, "job", rewards, on_ranked, resend_s=2))
        return self.rankers[-1]


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("kinds")
    url, tls_dir, log = redis_url.rpartition("/")[0] + "/9", folder / "tls", folder / "rank-worker.log"
    command = [sys.executable, "-m", "dipole.cli", "serve", "rank-worker"]
    environment = {**os.environ, "DIPOLE_REDIS_URL": url, "DIPOLE_TLS_DIR": str(tls_dir)}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        yield Platform(PlatformSettings(redis_url=url, candidate_ttl_s=60), tls_dir, log)
        process.terminate()


@pytest.fixture
def platform(running: Platform) -> Iterator[Platform]:
    yield running
    while running.rankers:
        running.rankers.pop().close()


def group(name: str) -> CandidateGroup:
    images = np.full((K, 8, 8, 3), 7, np.uint8)
    return CandidateGroup(id=name, step=0, prompt="a red square", metadata=None, images=images, seeds=range(K))


def collect(ranker: CeleryRanker, seconds: float = 60) -> RankedGroup:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (ranked := ranker.collect(until - time.monotonic())) is not None:
            return ranked
    raise AssertionError("no ranking")


def test_a_job_is_ranked_by_a_vllm_server_and_by_another_under_the_same_name(
    platform: Platform, judges: Callable[..., Judge]
) -> None:
    """The kind goes with the run's record, the key in no message; swapped under its name, the reward is asked anew."""
    judge = judges()
    vllm = Endpoint(
        url=judge.url, kind="vllm-score", options={"model": "judge-2b", "revision": "r1"}, key=SecretStr(KEY)
    )
    unirl = Endpoint(url=judge.url, kind="unirl-score", options={"reward": "hpsv3"}, key=SecretStr(KEY))
    spec = RewardSpec(name="judge")
    found = []
    for endpoint in (vllm, unirl):
        ranker = platform.ranker(ResolvedReward(spec, endpoint))
        ranker.submit(group("g"))
        found.append(collect(ranker).results["judge"])
    assert [each.scores for each in found] == [(0.0, 1.0, 2.0), (0.0, -1.0, -2.0)]
    named = [(each.model, each.model_revision, each.recipe_version) for each in found]
    assert named == [("judge-2b", "r1", "vllm-score/1"), ("hpsv3", "unknown", "unirl-score/1")]
    assert len(judge.asked) == 2
    again = platform.ranker(ResolvedReward(spec, vllm))
    again.submit(group("g"))
    assert collect(again).results["judge"] == found[0]
    assert len(judge.asked) == 2


def test_a_job_trains_on_cosmos_rl_s_service_and_on_flow_factory_s(platform: Platform, tmp_path: Path) -> None:
    """Both score every group of two steps, by enqueue and pull and at once, and agree as they do the same."""
    with CosmosServer() as cosmos, FlowFactoryServer() as factory:
        rewards = [
            ResolvedReward(
                RewardSpec(name="queued"),
                Endpoint(url=cosmos.url, kind="cosmos-rl-reward", options={"reward": "brightness"}),
            ),
            ResolvedReward(RewardSpec(name="direct"), Endpoint(url=factory.url, kind="flow-factory-compute")),
        ]
        given: dict[str, Any] = {
            "model": "tiny-turbo", "prompts": [{"prompt": "a red square"}], "steps": 2, "candidates": 4,
            "rewards": [{"name": "queued", "evaluates": False}, {"name": "direct", "evaluates": False}],
            "prompts_per_step": 1, "samples": {"prompts": 0}, "method": {"drpo": {"positives": 1, "negatives": 1}},
        }  # fmt: skip
        found: dict[tuple[str, str], RewardResult] = {}

        def keep(group: CandidateGroup, reward: str, result: RewardResult) -> None:
            found[group.id, reward] = result

        steps: list[dict[str, Any]] = []
        session.run_session(
            TrainSpec.model_validate(given), job_id="job", workdir=tmp_path, models_dir=tmp_path,
            ranker=platform.ranker(*rewards, on_ranked=keep), control=lambda: "run",
            on_event=lambda kind, data: steps.append(data) if kind == "step" else None,
        )  # fmt: skip
    assert [step["rewards"].keys() for step in steps] == [{"queued", "direct"}] * 2
    assert len(found) == 4
    for (group_id, _), result in found.items():
        assert None not in result.scores
        assert result.scores == pytest.approx(found[group_id, "direct"].scores)
    assert {result.recipe_version for result in found.values()} == {"cosmos-rl-reward/1", "flow-factory-compute/1"}


def test_a_key_is_in_the_run_s_record_alone(platform: Platform, judges: Callable[..., Judge]) -> None:
    """Though the endpoint repeats it: not in the reason, the rank worker's log, messages, answers or what is kept."""
    judge = judges(refuse=(403, {"detail": f"no such key: {KEY}"}))
    endpoint = Endpoint(url=judge.url, kind="vllm-score", key=SecretStr(KEY))
    reward = ResolvedReward(RewardSpec(name="forbidding", required=False), endpoint)
    ranker = platform.ranker(reward)
    ranker.submit(group("g"))
    result = collect(ranker).results["forbidding"]
    assert result.failure is not None
    assert "403: no such key: ***" in result.failure
    assert KEY not in platform.log.read_text() + repr(reward) + repr(result)
    with redis.Redis.from_url(platform.settings.redis_url) as client:
        records = {key for key in client.keys("*") if KEY.encode() in held(client, key)}
        assert records
        assert all(key.startswith(b"dipole:run:") for key in records)


def held(client: Any, key: bytes) -> bytes:
    """All that a key of Redis holds."""
    kind = client.type(key)
    if kind == b"string":
        return bytes(client.get(key))
    listed = client.lrange(key, 0, -1) if kind == b"list" else [repr(client.dump(key)).encode()]
    return b"".join(listed)


def test_certificates_that_are_missing_are_told_and_found_once_they_are_there(
    platform: Platform, judges: Callable[..., Judge]
) -> None:
    """The rank worker names the folder; put in place, the endpoint that asks for them ranks, without a restart."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    judge = judges(context=context)
    endpoint = Endpoint(url=judge.url, kind="vllm-score", tls="team-go")

    impatient = platform.ranker(ResolvedReward(RewardSpec(name="guarded", required=False, timeout_s=4), endpoint))
    impatient.submit(group("early"))
    failure = collect(impatient).results["guarded"].failure or ""
    assert f"configuration: tls 'team-go': there is no folder {platform.tls_dir}/team-go" in failure

    patient = platform.ranker(ResolvedReward(RewardSpec(name="guarded", timeout_s=60), endpoint))
    patient.submit(group("late"))
    assert patient.collect(1.0) is None
    credential = platform.tls_dir / "team-go"
    credential.mkdir(parents=True)
    authority.cert_pem.write_to_path(credential / "ca.pem")
    authority.issue_cert("trainer").private_key_and_cert_chain_pem.write_to_path(credential / "client.pem")
    assert collect(patient).results["guarded"].scores == (0.0, 1.0, 2.0)


def test_a_record_of_another_version_is_answered_and_its_key_told_to_nobody(platform: Platform) -> None:
    """A trainer that is newer than the rank worker hears that it is, at once; the log has no part of the key."""
    endpoint = Endpoint(url="http://127.0.0.1:1", kind="vllm-score", key=SecretStr(KEY))
    newer = endpoint.model_copy(update={"options": {"of_tomorrow": 1}})
    ranker = platform.ranker(ResolvedReward(RewardSpec(name="newer", required=False, timeout_s=20), newer))
    ranker.submit(group("g"))
    result = collect(ranker).results["newer"]
    assert result.failure is not None
    assert result.failure.startswith("configuration: options.of_tomorrow")
    assert KEY[-8:] not in platform.log.read_text()
