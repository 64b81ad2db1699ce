"""The training of the tiny world's label-free encoder (scripts/train-tiny): what it learns from, and what ships."""

from __future__ import annotations

import hashlib
import inspect
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_trainer.generators.one_step import TINY_TURBO
from dipole_trainer.weights.feature_weights import TINY_CONTRASTIVE_FILE

from ...scripts import SCRIPTS, load_script

ENCODERS = SCRIPTS.parent / "benchmarks/encoders"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train-tiny")


def cut(latents: Tensor) -> Tensor:
    """Quadrants of (B, 4, 8, 8), row by row: (4·B, 4, 4, 4)."""
    return torch.stack([latents[:, :, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)], 1).flatten(0, 1)


def test_mixing_deals_out_the_batch_s_quadrants_anew(script: ModuleType) -> None:
    """Each once, whole; quadrant j of the mixed batch is the one that is told for it."""
    latents = torch.randn(6, 4, 8, 8)
    mixed, dealt = script.cut_and_mix(latents)
    assert sorted(dealt.tolist()) == list(range(24))
    assert torch.equal(cut(mixed), cut(latents)[dealt])


def test_the_loss_is_the_surprise_at_each_vector_s_pair() -> None:
    """Straight from the definition: −log softmax of the cosine to its pair, among all vectors but itself."""
    one, other = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    vectors = [each / each.norm() for each in [*one, *other]]
    surprises = []
    for i, vector in enumerate(vectors):
        likeness = {j: (vector @ each / 0.2).exp() for j, each in enumerate(vectors) if j != i}
        surprises.append(-(likeness[(i + 3) % 6] / sum(likeness.values())).log())
    found = load_script("train-tiny").contrastive_loss(one, other)
    assert found.item() == pytest.approx(torch.stack(surprises).mean().item())


def test_it_learns_from_two_views_of_pictures_and_from_nothing_else(script: ModuleType) -> None:
    """Latents go in, no label, caption or reward; a few steps lower the loss; a seed gives the same again."""
    rng = np.random.default_rng(0)
    one, other = script.draw_views(script.load_vae(SCRIPTS / "nowhere"), script.random_pictures(64, rng), rng)
    assert one.shape == other.shape == (64, 4, 8, 8)
    assert list(inspect.signature(script.fit_contrastive).parameters) == ["one", "other", "steps", "seed", "log"]

    def losses() -> list[float]:
        found: list[float] = []
        script.fit_contrastive(one, other, 12, 7, lambda stage, step, loss: found.append(loss))
        return found

    first, again = losses(), losses()
    assert first == again
    assert sum(first[-3:]) < 0.9 * sum(first[:3])


def test_what_is_shipped_is_what_the_log_says_was_trained() -> None:
    """The package's encoder, and those that stand beside it in the benchmark."""
    found = {
        "contrastive seed 101": TINY_TURBO / "encoders" / TINY_CONTRASTIVE_FILE,
        "contrastive seed 102": ENCODERS / "contrastive-102" / TINY_CONTRASTIVE_FILE,
        "contrastive seed 103": ENCODERS / "contrastive-103" / TINY_CONTRASTIVE_FILE,
        "mae seed 101": ENCODERS / "latent-mae-101/model.safetensors",
    }
    log = (SCRIPTS / "train-tiny.log").read_text()
    for name, path in found.items():
        assert f"{name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n" in log
