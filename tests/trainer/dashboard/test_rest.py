"""What the pages ask of REST: a step's groups with their order and images, and how endpoints have been answering."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import safetensors.numpy

from dipole.broker.endpoint_statistics import EndpointRecord
from dipole_trainer.database.engine import Database
from dipole_trainer.datasets import recordings
from dipole_trainer.datasets.recordings import RecordedGroup, RecordedJob, RecordedStep
from dipole_trainer.jobs.ranking_ledger import RankingLedger, make_ledger_entry
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.storage import job_layout

JOBS = "v1/fine_tuning/jobs"
SCORES = {"shapes": (0.1, 0.9, 0.5, 0.3), "colour": (4.0, 1.0, 3.0, 2.0)}
RESULTS = {name: RewardResult(scores=scores) for name, scores in SCORES.items()}
SEEDS = (11, 12, 13, 14)


@pytest.fixture(scope="module")
def server(api_server: Any, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("rest")
    with api_server(folder, REDIS_URL=redis_url) as running:
        running.folder = folder
        yield running


def get(url: str, **more: Any) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=60, **more)


@pytest.fixture(scope="module")
def job(server: Any) -> str:
    """Ranked in steps 0 and 1, of which 1 was recorded, and evaluated after; its id."""
    rewards = [{"name": name, "url": "http://127.0.0.1:9", "required": True} for name in SCORES]
    body = {
        "prompts": [{"prompt": "a red square"}],
        "rewards": rewards,
        "allow_unready": True,
        "candidates": 4,
        "method": {"type": "drpo", "drpo": {"positives": 1, "negatives": 1}},
        "record_candidates": True,
    }
    found: str = httpx.post(f"{server.url}/{JOBS}", json=body, trust_env=False).raise_for_status().json()["id"]
    database = Database(f"sqlite:///{server.folder}/jobs.db")
    store, ledger = JobStore(database), RankingLedger(database)
    claim = store.claim_job("worker", 3600)
    assert claim is not None
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for step, name in ((0, "0.0"), (1, "1.0"), (2, "eval2.0")):
        group = CandidateGroup(f"{found}.{name}", step, "a red square", None, images, SEEDS)
        for reward, result in RESULTS.items():
            ledger.keep_ranking(claim, make_ledger_entry(group, reward, result))
    spec = store.load_spec(found)
    facts = {name: getattr(spec, name) for name in (*recordings.MATCHED_FIELDS, "method")}
    group = RecordedGroup(index=0, prompt=spec.prompts[0], seeds=SEEDS, results=RESULTS)
    told = RecordedStep(step=1, job=RecordedJob(**facts, rewards=spec.rewards), groups=(group,))
    path = server.folder / "artifacts" / job_layout.job_path(found, f"candidates/{job_layout.candidates_file_name(1)}")
    path.parent.mkdir(parents=True)
    preview = np.frombuffer(recordings.encode_preview(images), np.uint8)
    tensors = {"0": np.zeros((4, 4, 1, 1), np.float32), recordings.preview_name(0): preview}
    safetensors.numpy.save_file(tensors, path, metadata={recordings.METADATA_KEY: told.model_dump_json()})
    database.close()
    return found


def test_the_newest_step_is_one_that_was_trained_on(server: Any, job: str) -> None:
    """Groups of an evaluation are in the ledger as well, and taught nothing."""
    found = get(f"{server.url}/{JOBS}/{job}/groups").raise_for_status().json()
    assert (found["step"], found["first_step"], found["last_step"]) == (1, 0, 1)
    assert [each["group"] for each in found["data"]] == [f"{job}.1.0"]


def test_a_recorded_group_has_its_order_and_its_images(server: Any, job: str) -> None:
    (group,) = get(f"{server.url}/{JOBS}/{job}/groups?step=1").raise_for_status().json()["data"]
    normalised = [(np.array(scores) - np.mean(scores)) / np.std(scores) for scores in SCORES.values()]
    assert group["order"]["total"] == pytest.approx(sum(normalised))
    assert (group["order"]["positives"], group["order"]["negatives"]) == ([2], [3])
    preview = get(f"{server.url}/{group['preview']}")
    assert preview.headers["content-type"] == "image/webp"
    assert preview.headers["x-content-type-options"] == "nosniff"
    assert preview.content[8:12] == b"WEBP"


def test_without_a_recording_scores_are_there_and_the_order_is_not_guessed(server: Any, job: str) -> None:
    (group,) = get(f"{server.url}/{JOBS}/{job}/groups?step=0").raise_for_status().json()["data"]
    assert group["rewards"]["shapes"]["scores"] == list(SCORES["shapes"])
    assert (group["preview"], group["order"]["total"]) == (None, [])
    assert "record_candidates" in group["order"]["unknown"]
    assert get(f"{server.url}/{JOBS}/{job}/groups/0/0/preview").status_code == 404


@pytest.mark.parametrize("query", ["step=-1", "step=x", "limit=0", "limit=65", "steps=1"])
def test_what_cannot_be_asked_is_refused(server: Any, job: str, query: str) -> None:
    assert get(f"{server.url}/{JOBS}/{job}/groups?{query}").status_code == 422


def test_a_step_without_groups_is_empty(server: Any, job: str) -> None:
    assert get(f"{server.url}/{JOBS}/{job}/groups?step=77").raise_for_status().json()["data"] == []
    assert get(f"{server.url}/{JOBS}/none/groups").status_code == 404


def test_an_endpoint_is_shown_as_it_answered(server: Any, redis_url: str) -> None:
    reward = {"name": "judge", "url": "http://127.0.0.1:9"}
    httpx.post(f"{server.url}/v1/rewards", json=reward, trust_env=False).raise_for_status()
    url = f"{server.url}/v1/rewards/judge/statistics"
    assert get(url).raise_for_status().json()["requests"] == 0
    with redis.Redis.from_url(redis_url) as client:
        for at, outcome in ((1.0, "completed"), (2.0, "timeout")):
            EndpointRecord(client).add_request(
                "judge", {"at": at, "seconds": at, "outcome": outcome, "circuit": "open", "revision": "r1"}
            )
    found = get(url).json()
    assert (found["requests"], found["failures"], found["p50_seconds"]) == (2, {"timeout": 1}, 1.0)
    assert (found["last_outcome"], found["circuit"], found["revision"]) == ("timeout", "open", "r1")
    assert get(f"{server.url}/v1/rewards/none/statistics").status_code == 404


def test_without_redis_the_statistics_say_so_and_the_rest_goes_on(api_server: Any, tmp_path: Path) -> None:
    with api_server(tmp_path, REDIS_URL="redis://127.0.0.1:9/0") as server:
        reward = {"name": "judge", "url": "http://127.0.0.1:9"}
        httpx.post(f"{server.url}/v1/rewards", json=reward, trust_env=False).raise_for_status()
        answer = get(f"{server.url}/v1/rewards/judge/statistics")
        assert answer.status_code == 503
        assert "Redis does not answer" in answer.json()["detail"]
        assert get(f"{server.url}/v1/rewards").status_code == 200
