"""Groups that travel as latents, over real Redis, rank worker and HTTP: who takes them, and who is sent images."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from dipole.broker.candidates import CandidateStore
from dipole.broker.references import make_reference
from dipole.client.endpoint import Endpoint as Described
from dipole.errors import InvalidInput, RewardUnavailable
from dipole.tiny.job import build_demo_job, build_demo_prompts
from dipole_trainer.generators.one_step import TINY_TURBO
from dipole_trainer.jobs.ranking_ledger import make_ledger_entry
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.ranking.lazy_images import LazyImages
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.training.session import run_session

from ...processes import serving
from .ranking_harness import Endpoints, Harness, K, collect, reward

VAE = f"sha256:{'1' * 64}"


class Decoding:
    """Images that count how often they are decoded; row `black` has none."""

    def __init__(self, black: int | None = None) -> None:
        self.times, self.black = 0, black

    def __call__(self) -> tuple[NDArray[np.uint8], Mapping[int, str]]:
        self.times += 1
        return np.full((K, 8, 8, 3), 9, np.uint8), {} if self.black is None else {self.black: "not_finite: pixels"}


def group(name: str, decode: Decoding, **more: Any) -> CandidateGroup:
    latents = np.random.default_rng(0).normal(size=(K, 4, 2, 2)).astype(np.float16)
    return CandidateGroup(
        name, 0, "a star", None, LazyImages(K, decode), range(K), latents=latents, vae=more.pop("vae", VAE), **more
    )


@pytest.fixture(scope="module")
def tiny_vae_reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Reward `shapes` with tiny-turbo's VAE."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "dipole.cli", "rewards", "serve", "shapes", "--port", str(port)]

    environment = {"DIPOLE_REWARD_VAE": str(TINY_TURBO)}
    with serving(command, tmp_path_factory.mktemp("shapes") / "log", env=environment) as (url, _):
        yield url


def test_a_reward_without_the_vae_is_sent_images_from_then_on(
    rank_worker: subprocess.Popen[bytes], endpoint: Endpoints, harness: Harness
) -> None:
    """Two rewards share what is decoded once; the second group is not tried as latents, and Redis is left empty."""
    rewards = [reward(endpoint(), name) for name in ("plain-a", "plain-b")]
    ranker = harness.ranker(*rewards)
    assert ranker.takes_latents()
    decodes = [Decoding(), Decoding(black=2)]
    for number, decode in enumerate(decodes):
        ranker.submit(group(f"as-images-{number}", decode))
        (ranked,) = collect(ranker)
        assert all(result.seen_as == "images" and result.images_because is None for result in ranked.results.values())
    assert not ranker.takes_latents()
    assert [decode.times for decode in decodes] == [1, 1]
    flawed = ranked.results["plain-a"]
    assert flawed.scores == (0.0, 1.0, None, 2.0)
    assert flawed.errors == {2: "not_finite: pixels"}
    ranker.collect(0)
    with redis.Redis.from_url(harness.settings.redis_url) as client:
        assert client.keys("dipole:candidates:*") == []


def test_another_vae_is_said_and_the_right_one_decodes_there(
    rank_worker: subprocess.Popen[bytes], harness: Harness, tiny_vae_reward: str
) -> None:
    """Its own latents are ranked without any image here; those of another VAE are not, and the answer says why."""
    fingerprint = httpx.get(f"{tiny_vae_reward}/v1/info").json()["latents"]["vae"]
    decode = Decoding()
    for name, vae, seen in (("right", fingerprint, "latents"), ("wrong", VAE, "images")):
        ranker = harness.ranker(reward(tiny_vae_reward, name, min_valid=1))
        ranker.submit(group(f"vae-{name}", decode, vae=vae))
        result = collect(ranker)[0].results[name]
        assert result.seen_as == seen
        assert (result.images_because is None) == (name == "right")
        assert decode.times == (name == "wrong")
        ranker.close()


def test_latents_alone_never_become_images(
    rank_worker: subprocess.Popen[bytes], endpoint: Endpoints, harness: Harness
) -> None:
    """An optional reward that takes none is left out with what to do; a required one pauses the job."""
    decode = Decoding()
    ranker = harness.ranker(reward(endpoint(), "optional", required=False))
    ranker.submit(group("alone", decode, latents_alone=True))
    failure = collect(ranker)[0].results["optional"].failure
    assert failure is not None
    assert "takes no latents" in failure
    assert "candidates_as" in failure
    required = harness.ranker(reward(endpoint(), "required"))
    required.submit(group("alone", decode, latents_alone=True))
    with pytest.raises(RewardUnavailable, match="takes no latents"):
        collect(required)
    assert decode.times == 0


def test_a_reference_names_what_lies_there(redis_url: str) -> None:
    """Latents come back bit by bit from Redis; equal bytes of another shape are another group."""
    store = CandidateStore(redis.Redis.from_url(redis_url), 60)
    latents = np.random.default_rng(0).normal(size=(3, 4, 2, 5)).astype(np.float16)
    reference = make_reference(latents)
    assert reference.endswith(":3x4x2x5")
    store.put(reference, latents)
    assert np.array_equal(store.get(reference), latents)
    assert store.get(reference).dtype == np.float16
    store.delete([reference])
    for wrong in (np.zeros((2, 3), np.float16), np.zeros((2, 3, 4, 5), np.float32), np.zeros((1, 2, 2, 4), np.uint8)):
        with pytest.raises(InvalidInput):
            make_reference(wrong)
    for text in ("sha256:" + "0" * 64 + ":1x2x3x4x5", "sha256:" + "0" * 64 + ":99999x99999x9x9"):
        with pytest.raises(InvalidInput):
            store.get(text)


def test_the_ledger_hashes_what_was_looked_at() -> None:
    """Of a group with latents those, as its images may never be made; its images once somebody was sent them."""
    decode = Decoding()
    asked = group("g", decode)

    def hashes() -> list[str]:
        told: list[str] = make_ledger_entry(asked, "r", RewardResult(scores=(0.0,) * K))["group"]["candidates"]
        return told

    of_latents = hashes()
    assert len(set(of_latents)) == K
    assert decode.times == 0
    images = np.asarray(asked.images)
    assert hashes() == [hashlib.sha256(each.tobytes()).hexdigest() for each in images] != of_latents


def train(
    harness: Harness, url: str, tmp_path: Path, **changes: Any
) -> tuple[list[dict[str, Any]], list[tuple[str, dict[str, Any]]]]:
    """Steps and other events of a short run on the tiny world."""
    events: list[tuple[str, dict[str, Any]]] = []
    job = {**build_demo_job(steps=2), "prompts": build_demo_prompts(held_out=False)[:4], "prompts_per_step": 2}
    method = {"type": "drpo", "drpo": {"radii": [0.2, 0.5], "mask_self": True}}
    job |= {
        "rewards": [{"name": "shapes"}],
        "candidates": 8,
        "evaluation": {},
        "samples": {"prompts": 0},
        "method": method,
    }
    spec = TrainSpec.model_validate({**job, "method": method, **changes})
    ranker = harness.ranker(ResolvedReward(RewardSpec(name="shapes"), Described(url=url)), job=tmp_path.name)
    run_session(
        spec, job_id=tmp_path.name, workdir=tmp_path, models_dir=tmp_path, ranker=ranker, control=lambda: "run",
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    ranker.close()
    return [data for kind, data in events if kind == "step"], [each for each in events if each[0] != "step"]


def test_a_job_trains_the_same_on_either(
    rank_worker: subprocess.Popen[bytes], harness: Harness, tiny_vae_reward: str, tmp_path: Path
) -> None:
    """Over Celery and HTTP: rewards and loss of a job that sends latents are those of one that sends images, and an
    event says which; a recording has its previews all the same.
    """
    found = {}
    for wanted in ("auto", "images"):
        (folder := tmp_path / wanted).mkdir()
        found[wanted], events = train(harness, tiny_vae_reward, folder, candidates_as=wanted, record_candidates=True)
        assert [data["reward"] for kind, data in events if kind == "latents_sent"] == ["shapes"] * (wanted == "auto")
        assert len(list((folder / "candidates").iterdir())) == 2
    for name in ("rewards", "loss"):
        left, right = ([step[name] for step in found[wanted]] for wanted in ("auto", "images"))
        assert left == [pytest.approx(each, rel=0.05, abs=0.02) for each in right]
