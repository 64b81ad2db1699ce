"""The drift loss: equal to the published numbers, and the properties that make it a dipole field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_trainer.methods.drift import _dipole_field, _self_pairs, drift_loss

# 144 cases (inputs, loss, gradient, feature scale) computed in float32 with the published DrPO implementation.
GOLDEN = np.load(Path(__file__).parent / "golden/drift_loss.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})
WEIGHTS = {"positive_weight": 3000.0, "negative_weight": 3000.0, "radii": (0.02, 0.05, 0.2)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12))


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_published_implementation(case: str) -> None:
    """Loss to 1e-5, gradient to 1e-4, relative."""
    value = {name: GOLDEN[f"{case}/{name}"] for name in ("generated", "positive", "negative", "loss", "grad", "radii")}
    generated = torch.from_numpy(value["generated"]).requires_grad_()
    drift = drift_loss(
        generated,
        torch.from_numpy(value["positive"]),
        torch.from_numpy(value["negative"]),
        positive_weight=float(GOLDEN[f"{case}/positive_weight"]),
        negative_weight=float(GOLDEN[f"{case}/negative_weight"]),
        radii=[float(radius) for radius in value["radii"]],
        kernel=str(GOLDEN[f"{case}/kernel"]),  # type: ignore[arg-type]
        mask_negative_self=bool(GOLDEN[f"{case}/mask_negative_self"]),
    )
    drift.loss.sum().backward()
    assert generated.grad is not None
    assert np.allclose(drift.loss.detach().numpy(), value["loss"], rtol=1e-5, atol=0)
    assert relative(generated.grad.numpy(), value["grad"]) < 1e-4
    assert relative(drift.feature_scale.numpy(), GOLDEN[f"{case}/feature_scale"]) < 1e-5


def test_no_drift_at_equilibrium() -> None:
    """Where positives and negatives are the same points, pull and push cancel exactly."""
    x, anchors = draw(1, 6, 5), draw(1, 4, 5, seed=1)
    weights = torch.cat([torch.zeros(1, 6), torch.full((1, 8), 3000.0)], 1).double()  # the batch itself does not count
    logits = -(x[:, :, None] - torch.cat([x, anchors, anchors], 1)[:, None]).norm(dim=-1)
    field = _dipole_field(logits, weights, x, torch.cat([x, anchors, anchors], 1), first_positive=10)
    apart = _dipole_field(logits, weights, x, torch.cat([x, anchors, anchors + 1], 1), first_positive=10)
    assert field.abs().max() < 1e-9 * apart.abs().max()


def test_moves_towards_positives_and_away_from_negatives() -> None:
    """A step along the drift brings samples nearer to the positives' mean and further from the negatives'."""
    x = draw(1, 8, 4) * 0.1
    positive, negative = draw(1, 3, 4, seed=1) * 0.1 + 2, draw(1, 3, 4, seed=2) * 0.1 - 2
    drift = drift_loss(x, positive, negative, **WEIGHTS)
    moved = x + 0.1 * (drift.goal * drift.scale - x)
    assert (moved - 2).norm() < (x - 2).norm()
    assert (moved + 2).norm() > (x + 2).norm()


@pytest.mark.parametrize("what", ["generated", "positive", "negative", "prompts"])
def test_order_does_not_matter(what: str) -> None:
    """Permuting a set changes nothing but the order of what comes out."""
    x, p, q = draw(2, 6, 5), draw(2, 3, 5, seed=1), draw(2, 4, 5, seed=2)
    plain = drift_loss(x, p, q, **WEIGHTS).loss
    if what == "prompts":
        assert torch.allclose(drift_loss(x.flip(0), p.flip(0), q.flip(0), **WEIGHTS).loss, plain.flip(0))
        return
    x, p, q = (
        value.flip(1) if name == what else value
        for name, value in zip(("generated", "positive", "negative"), (x, p, q), strict=True)
    )
    assert torch.allclose(drift_loss(x, p, q, **WEIGHTS).loss, plain)


def test_scale_and_position_of_the_feature_space_do_not_matter() -> None:
    """Features in other units, or moved as a whole, give the same loss (laplacian and rbf)."""
    x, p, q = draw(1, 6, 5), draw(1, 3, 5, seed=1), draw(1, 4, 5, seed=2)
    plain = drift_loss(x, p, q, **WEIGHTS)
    assert torch.allclose(drift_loss(7 * x, 7 * p, 7 * q, **WEIGHTS).loss, plain.loss)
    moved = drift_loss(x + 3, p + 3, q + 3, **WEIGHTS)
    assert torch.allclose(moved.goal * moved.scale - 3, plain.goal * plain.scale, atol=1e-6)


def test_gradient_reaches_only_the_generated() -> None:
    x, p, q = (draw(1, 4, 3, seed=seed).requires_grad_() for seed in range(3))
    drift = drift_loss(x, p, q, **WEIGHTS)
    drift.loss.sum().backward()
    assert x.grad is not None
    assert p.grad is None
    assert q.grad is None
    assert not drift.goal.requires_grad


def test_gradient_is_that_of_a_fixed_goal() -> None:
    """Given scale and goal, the loss is a sum over samples: chunks add up to the whole."""
    x = draw(1, 6, 5).requires_grad_()
    drift = drift_loss(x, draw(1, 2, 5, seed=1), draw(1, 2, 5, seed=2), **WEIGHTS)
    (whole,) = torch.autograd.grad(drift.loss.sum(), x)
    chunks = [((x[:, i : i + 2] / drift.scale - drift.goal[:, i : i + 2]).square().sum() / (6 * 5)) for i in (0, 2, 4)]
    (summed,) = torch.autograd.grad(torch.stack(chunks).sum(), x)
    assert torch.allclose(whole, summed, rtol=1e-12)


def test_anchors_that_are_samples_can_be_masked() -> None:
    """A sample is kept from its own copy among the anchors: its affinity to it is on the floor, the others' are not."""
    x, rows = draw(1, 6, 5), torch.tensor([[0, 1]])
    masked = drift_loss(x, x[:, :2], x[:, 4:], positive_rows=rows, negative_rows=rows + 4, **WEIGHTS)
    plain = drift_loss(x, x[:, :2], x[:, 4:], **WEIGHTS)
    for sample in (0, 1, 4, 5):  # anchors are drawn elsewhere once they do not see themselves
        assert not torch.allclose(masked.goal[0, sample], plain.goal[0, sample])
    by_flag = drift_loss(x, x[:, :2], x, mask_negative_self=True, **WEIGHTS)
    by_rows = drift_loss(x, x[:, :2], x, negative_rows=torch.arange(6)[None], **WEIGHTS)
    assert torch.equal(by_flag.loss, by_rows.loss)
    assert not torch.allclose(by_flag.loss, drift_loss(x, x[:, :2], x, **WEIGHTS).loss)


def test_own_pairs_are_the_copies_and_nothing_else() -> None:
    """With three samples, anchors that copy rows 2 (negative) and 0 (positive), and a negative that copies none."""
    x = draw(1, 3, 2)
    own = _self_pairs(x, x[:, :2], x[:, :1], False, torch.tensor([[2, -1]]), torch.tensor([[0]]))
    assert own[0].tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]


def test_weights_may_be_one_per_anchor() -> None:
    x, p, q = draw(2, 6, 5), draw(2, 3, 5, seed=1), draw(2, 4, 5, seed=2)
    one = drift_loss(
        x,
        p,
        q,
        positive_weight=torch.full((2, 3), 3000.0),
        negative_weight=torch.full((4,), 3000.0),
        radii=(0.02, 0.05, 0.2),
    )
    assert torch.allclose(one.loss, drift_loss(x, p, q, **WEIGHTS).loss)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positive": draw(1, 0, 5)}, "positive must be"),
        ({"negative": draw(1, 3, 4)}, "negative must be"),
        ({"radii": ()}, "radii must be"),
        ({"kernel": "gauss"}, "kernel must be"),
        ({"mask_negative_self": True}, "mask_negative_self needs"),
    ],
)
def test_bad_shapes_are_named(change: dict, says: str) -> None:  # type: ignore[type-arg]
    arguments = {"generated": draw(1, 6, 5), "positive": draw(1, 2, 5), "negative": draw(1, 3, 5), **WEIGHTS, **change}
    with pytest.raises(ValueError, match=says):
        drift_loss(arguments.pop("generated"), arguments.pop("positive"), arguments.pop("negative"), **arguments)
