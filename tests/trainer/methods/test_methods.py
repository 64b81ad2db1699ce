"""What each method wants, in cases small enough to see: the direction of its pull, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dipole_trainer.methods import METHODS, grpo, pso
from dipole_trainer.methods.base import RankedSamples
from dipole_trainer.spec import GrpoSpec, MethodSpec, PsoSpec
from dipole_trainer.training.chunked_gradient import output_gradients

SHAPE = (4, 2, 2)


def samples(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(seed))


def group(scores: list[float], x: Tensor | None = None, ranked: Tensor | None = None, **changes: Any) -> RankedSamples:
    """A group of len(scores) samples that are ranked themselves, in the base's place."""
    x = samples(len(scores)) if x is None else x
    order = sorted((k for k in range(len(scores)) if math.isfinite(scores[k])), key=lambda k: -scores[k])
    values: dict[str, Any] = {
        "x": x, "phi": {"latents": x.flatten(1)[:, None]}, "x_ref": x, "phi_ref": {"latents": x.flatten(1)[:, None]},
        "ranked_latents": x if ranked is None else ranked, "phi_ranked": {"latents": x.flatten(1)[:, None]},
        "scores": torch.tensor(scores), "positives": (order[0],), "negatives": (order[-1],),
        "ranks_itself": ranked is None,
    }  # fmt: skip
    return RankedSamples(**{**values, **changes})


def pull(kind: str, given: RankedSamples) -> Tensor:
    """Where gradient descent moves x, (K, c, h, w)."""
    settings = MethodSpec.model_validate({"type": kind}).settings
    _, found = output_gradients(lambda leaves: METHODS[kind].loss(leaves, settings), given)
    moved = torch.zeros_like(given.x) if found.x is None else -found.x
    return moved - sum(value.reshape(given.x.shape) for value in found.phi.values())


@pytest.mark.parametrize("kind", ["drpo", "dpo", "sft"])
def test_samples_move_towards_the_best(kind: str) -> None:
    """A sample that is neither best nor worst gets nearer to the best than to the worst."""
    given = group([1.0, 0.5, 0.4, -1.0])
    best, worst = given.ranked_latents[0], given.ranked_latents[3]
    for k in (1, 2):
        move = pull(kind, given)[k]
        assert (move * (best - worst)).sum() > 0


def test_grpo_moves_anchors_towards_good_neighbours() -> None:
    """Only anchors move; each by the candidates' advantages, towards the good ones and away from the bad."""
    given = group([2.0, 0.0, 0.1, -2.0, 0.0], samples(5) * 0.1)
    settings = GrpoSpec(anchors=2)
    _, found = output_gradients(lambda leaves: grpo.grpo_loss(leaves, settings), given)
    assert found.x is not None
    assert found.find_nonzero_rows()[0] == [0, 1]
    assert (-found.x[1] * (given.ranked_latents[0] - given.ranked_latents[3])).sum() > 0


def test_grpo_noises_are_neighbours_of_unit_variance() -> None:
    """Each has variance 1, and two of them the correlation 1 − σ²."""
    torch.manual_seed(0)
    noise = torch.randn(2, 4, 128, 128)
    mixed = grpo.neighbour_noises(noise, lambda purpose: torch.randn(2, 4, 128, 128), GrpoSpec(sigma=0.6))
    assert mixed.var(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.03)
    assert (mixed[0] * mixed[1]).mean().item() == pytest.approx(1 - 0.36, abs=0.02)


def test_grpo_advantages_are_centred_scaled_and_clipped() -> None:
    """By hand for p = 1 and three scores; a lone winner of many is clipped at 5."""
    found = grpo.quasi_norm_advantages(torch.tensor([1.0, 2.0, 6.0]), GrpoSpec(norm_p=1.0))
    assert found.tolist() == pytest.approx([value * 3**0.5 / 6 for value in (-2.0, -1.0, 3.0)])
    lone = torch.zeros(2000)
    lone[0] = 1.0
    assert grpo.quasi_norm_advantages(lone, GrpoSpec(norm_p=2.0))[0] == 5


def test_pso_raises_the_winner_of_a_pair() -> None:
    """The winner's mean moves to the winning action, the loser's away from the losing one; a tie moves nothing."""
    x = samples(4)
    ranked = x + 0.05 * samples(4, seed=1)
    given = group([1.0, 0.0, 0.5, 0.5], x, ranked)
    move = pull("pso", given)
    assert (move[0] * (ranked[0] - x[0])).sum() > 0
    assert (move[1] * (ranked[1] - x[1])).sum() < 0
    assert not move[2:].any()


def test_pso_explores_by_its_std() -> None:
    x, noise = samples(3), samples(3, seed=2)
    assert torch.allclose(pso.explore_gaussian(x, lambda purpose: noise, PsoSpec(std=0.05)), x + 0.05 * noise)


@pytest.mark.parametrize("kind", ["grpo", "pso"])
def test_a_candidate_without_a_score_takes_no_part(kind: str) -> None:
    """With one NaN the loss is that of the group without it."""
    x, other = samples(5), samples(5, seed=3)
    settings = MethodSpec.model_validate({"type": kind}).settings
    with_it = group([1.0, 0.0, math.nan, 0.5, 0.2], x, x + 0.05 * other)
    keep = [0, 1, 3, 4]
    without = group([1.0, 0.0, 0.5, 0.2], x[keep], (x + 0.05 * other)[keep])
    one, two = (METHODS[kind].loss(each, settings).total for each in (with_it, without))
    assert one.item() == pytest.approx(two.item())


def test_dpo_is_at_log_two_where_the_model_is_the_base() -> None:
    """No preference yet: the logistic's middle."""
    given = group([1.0, 0.0, 0.5])
    assert METHODS["dpo"].loss(given, MethodSpec(type="dpo").settings).total.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_in_features_distances_are_averaged_over_keys_and_latents_have_no_say(kind: str) -> None:
    """By hand on numbers: the loss of two keys of different sizes, whose gradient is in φ alone."""
    x, wide, narrow = samples(4), torch.randn(4, 2, 3), torch.randn(4, 1, 5)
    phi, ref = {"wide": wide, "narrow": narrow}, {"wide": torch.randn(4, 2, 3), "narrow": torch.randn(4, 1, 5)}
    given = group([1.0, 0.5, 0.4, -1.0], x, phi=phi, phi_ranked=phi, phi_ref=ref)
    far = lambda one, row: {key: ((one[key] - phi[key][row]) ** 2).mean().item() for key in phi}  # noqa: E731
    mean = lambda values: sum(values.values()) / 2  # noqa: E731
    margin = (mean(far(phi, 3)) - mean(far(phi, 0))) - (mean(far(ref, 3)) - mean(far(ref, 0)))
    expected = {"dpo": math.log1p(math.exp(-2.0 * margin)), "sft": mean(far(phi, 0))}[kind]
    own = {"space": "features"} | ({"beta": 2.0} if kind == "dpo" else {})
    settings = MethodSpec.model_validate({"type": kind, kind: own}).settings
    loss, found = output_gradients(lambda leaves: METHODS[kind].loss(leaves, settings), given)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert found.x is None
    assert found.phi.keys() == phi.keys()


def test_the_control_is_drpo_on_shuffled_scores() -> None:
    assert METHODS["random"].shuffles_scores
    assert METHODS["random"].loss is METHODS["drpo"].loss
