"""The fast update is the plain formulation, for every method: same loss, same gradient, chunks of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_trainer import features, generators
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.methods.drift import drift_loss
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import LossScale, OutputGradients, parameter_gradient
from dipole_trainer.training.rollout import Rollout, SampledGroup

NOWHERE = Path("nowhere")
PROMPT = PromptSpec(prompt="a red circle")
K = 6
TEMPERATURE = 0.02  # of GRPO: small enough for ratios beyond its clip
CLIPPED: list[bool] = []
ORDER = GroupOrder(np.array([0.1, 0.9, np.nan, 1.5, 0.4, -1.0]), Selection((3, 1), (5, 0)))


def make(method: dict[str, Any], **changes: Any) -> Rollout:
    """A rollout all in float64, its adapter disturbed: half of a fresh one's gradient is nought."""
    base: dict[str, Any] = {
        "prompts": [PROMPT], "rewards": [{"name": "r"}], "candidates": K, "prompts_per_step": 1, "method": method,
        "lora": {"rank": 4, "alpha": 4}, "features": {"type": "tiny_contrastive"},
    }  # fmt: skip
    spec = TrainSpec.model_validate({**base, **changes})
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    phi = features.build_features(spec.features, generator, models_dir=NOWHERE)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    rollout = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size))
    _double(rollout)
    return rollout


def in_float32(method: dict[str, Any], **changes: Any) -> Rollout:
    """A rollout as jobs have it, its trained weights disturbed."""
    base: dict[str, Any] = {
        "prompts": [PROMPT], "rewards": [{"name": "r"}], "candidates": K, "prompts_per_step": 1, "method": method,
    }  # fmt: skip
    spec = TrainSpec.model_validate({**base, **changes})
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.01)
    return Rollout(
        spec,
        generator,
        features.build_features(spec.features, generator, models_dir=NOWHERE),
        MicroBatches(spec.chunk_size),
    )


def _double(rollout: Rollout) -> None:
    """G in float64, past the generator's own float32 latents; φ too."""
    generator = rollout.generator
    for module in (generator.denoiser, rollout.features.encoder):  # type: ignore[attr-defined]
        module.double()
    scheduler = generator.scheduler
    scheduler.set_timesteps(1)
    timestep, sigma = scheduler.timesteps[0], float(scheduler.sigmas[0])

    def call(self: Any, noise: Tensor, prompt: str) -> Tensor:
        sample = noise.double() * sigma
        states = self.embed_prompt(prompt).states.double().expand(len(noise), -1, -1)
        v = self.denoiser(sample / (sigma**2 + 1) ** 0.5, timestep, encoder_hidden_states=states).sample
        return sample / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5

    generator.__class__ = type("Float64Generator", (type(generator),), {"__call__": call})


def move_on(rollout: Rollout, by: float) -> None:
    """Disturb the weights, as later updates would."""
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in rollout.generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * by)


def plain(rollout: Rollout, drawn: SampledGroup) -> tuple[float, list[Tensor]]:
    """The group's loss and gradient by one graph over all K samples; anchors are encoded again from their samples."""
    generator, spec = rollout.generator, rollout.spec.method
    x = generator(drawn.noise, PROMPT.prompt)
    with torch.no_grad(), generator.base_weights():
        x_ref = generator(drawn.noise, PROMPT.prompt)
    total = PLAIN[spec.type](rollout, x, x_ref, drawn.ranked_latents)
    return total.item(), list(torch.autograd.grad(total, generator.parameters()))


def plain_drpo(rollout: Rollout, x: Tensor, x_ref: Tensor, ranked: Tensor) -> Tensor:
    spec = rollout.spec.method.settings
    phi = lambda latents: rollout.features(latents, prompt="", seeds=[0] * len(latents))  # noqa: E731
    weights: dict[str, Any] = {"positive_weight": 3000.0, "negative_weight": 3000.0, "radii": spec.radii}
    losses = []
    for key, value in phi(x).items():
        encode = lambda latents: phi(latents.detach())[key].flatten(0, 1)[None]  # noqa: B023, E731
        generated = value.flatten(0, 1)[None]
        preference = drift_loss(generated, encode(ranked[[3, 1]]), encode(ranked[[5, 0]]), **weights)
        reference = drift_loss(generated, encode(x_ref), encode(x), mask_negative_self=True, **weights)
        losses.append(preference.loss.mean() + spec.ref_lambda * reference.loss.mean())
    return torch.stack(losses).mean()


def compared(rollout: Rollout, *latents: Tensor) -> list[tuple[Tensor, ...]]:
    """What DPO and best-of-K measure distances between: the latents, or each key of their features."""
    if not rollout.settings.uses_features():
        return [latents]
    phi = [rollout.features(each, prompt="", seeds=[0] * len(each)) for each in latents]
    return [tuple(each[key] for each in phi) for key in phi[0]]


def plain_dpo(rollout: Rollout, x: Tensor, x_ref: Tensor, ranked: Tensor) -> Tensor:
    def score(one: Tensor, ranked: Tensor, rows: tuple[int, int]) -> Tensor:
        return -torch.stack([((each - ranked[row]) ** 2).mean() for each in one for row in rows]).mean()

    gap = lambda one, ranked: score(one, ranked, (3, 1)) - score(one, ranked, (5, 0))  # noqa: E731
    gaps = [gap(one, anchors) - gap(ref, anchors) for one, ref, anchors in compared(rollout, x, x_ref, ranked)]
    return torch.log1p(torch.exp(-30.0 * torch.stack(gaps).mean()))


def plain_grpo(rollout: Rollout, x: Tensor, x_ref: Tensor, ranked: Tensor) -> Tensor:
    scored, anchors = [0, 1, 3, 4, 5], [0, 1, 3, 4]
    scores = torch.as_tensor(ORDER.total[scored])
    centred = scores - scores.mean()
    advantage = (5**0.5 * centred / (centred.abs() ** 0.8).sum() ** (1 / 0.8)).clamp(-5, 5)
    terms = []
    for anchor in anchors:
        now, then = (
            torch.softmax(torch.stack([-((ranked[row] - at) ** 2).mean() / TEMPERATURE for row in scored]), 0)
            for at in (x[anchor], ranked[anchor])
        )
        ratio = now / then
        CLIPPED.append(bool(((ratio < 0.8) & (advantage < 0) | (ratio > 1.2) & (advantage > 0)).any()))
        terms.append(torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean())
    return -torch.stack(terms).mean()


def plain_pso(rollout: Rollout, x: Tensor, x_ref: Tensor, ranked: Tensor) -> Tensor:
    log_p = lambda mean, row: -((ranked[row] - mean[row]) ** 2).mean() / (2 * 0.05**2)  # noqa: E731
    log_r = lambda row: (log_p(x, row) - log_p(x_ref, row)).exp().clamp(0.9, 1.1).log()  # noqa: E731
    pairs = [(1, 0), (3, 4)]  # scored rows 0 1 3 4 5 two by two, the winner first; 5 is left over
    return torch.stack([torch.log1p(torch.exp(-50 * (log_r(win) - log_r(lose)))) for win, lose in pairs]).mean()


def plain_sft(rollout: Rollout, x: Tensor, x_ref: Tensor, ranked: Tensor) -> Tensor:
    return torch.stack([((one - anchors[3]) ** 2).mean() for one, anchors in compared(rollout, x, ranked)]).mean()


def test_grpo_is_compared_where_it_clips() -> None:
    """The stale case has ratios beyond a bound, on the side where the clip decides."""
    rollout = make({"type": "grpo", "grpo": {"temperature": TEMPERATURE}})
    drawn = rollout.sample_group(0, 0, PROMPT)
    move_on(rollout, 0.2)
    CLIPPED.clear()
    plain(rollout, drawn)
    assert any(CLIPPED)


PLAIN = {
    "drpo": plain_drpo, "dpo": plain_dpo, "grpo": plain_grpo, "pso": plain_pso, "sft": plain_sft,
}  # fmt: skip


@pytest.mark.parametrize(("chunk", "stale"), [(1, False), (4, False), (6, False), (4, True)])
@pytest.mark.parametrize("method", ["drpo", "dpo", "dpo in features", "grpo", "pso", "sft", "sft in features"])
def test_fast_update_equals_the_plain_formulation(method: str, chunk: int, stale: bool) -> None:
    """Loss and gradient of one graph over all samples, to float64 rounding; also when the weights have moved on."""
    method, _, space = method.partition(" in ")
    own: dict[str, Any] = {"positives": 2, "negatives": 2} if method in ("drpo", "dpo") else {}
    own |= {"temperature": TEMPERATURE} if method == "grpo" else {}
    own |= {"space": space} if space else {}
    rollout = make({"type": method, method: own}, chunk_size=chunk)
    drawn = rollout.sample_group(0, 0, PROMPT)
    if stale:
        move_on(rollout, 1e-4 if method == "pso" else 0.2)  # PSO's clip is passed by little
    expected_loss, expected = plain(rollout, drawn)
    loss, found = rollout.group_gradient(drawn, ORDER, on_policy=not stale)
    assert loss.total.item() == pytest.approx(expected_loss, rel=1e-6, abs=1e-7)  # scores are float32 on their way in
    assert found is not None
    assert sum(value.norm() for value in expected) > 0
    gap = sum((one - other).square().sum() for one, other in zip(expected, found, strict=True))
    assert (gap / sum(one.square().sum() for one in expected)) ** 0.5 < 1e-5  # scores, once more


def test_stale_samples_are_drawn_again() -> None:
    """Past its weights' time a group keeps its ranked samples, and x is what the present weights make of its noises."""
    rollout = make({"type": "sft"})
    drawn = rollout.sample_group(0, 0, PROMPT)
    before = drawn.ranked_latents.clone()
    with torch.no_grad():
        rollout.generator.parameters()[0].add_(0.3)
    loss, _ = rollout.group_gradient(drawn, ORDER, on_policy=False)
    x = rollout.generator(drawn.noise, PROMPT.prompt)
    assert torch.equal(drawn.ranked_latents, before)
    assert loss.total.item() == pytest.approx(((x - before[3]) ** 2).mean().item())


def test_out_of_memory_halves_the_chunk_and_changes_nothing() -> None:
    """A φ that takes three samples at most: 6 becomes 3, is said once, and the gradient is that of chunks of 3."""
    told: list[int] = []
    one, other = (make({"drpo": {"positives": 2, "negatives": 2}}, chunk_size=size) for size in (6, 3))
    whole, roomy = one.features, one.micro_batches
    assert roomy.size == 6
    one.micro_batches = MicroBatches(6, told.append)

    def narrow(x: Tensor, **rest: Any) -> dict[str, Tensor]:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(x, **rest)

    one.features = narrow  # type: ignore[assignment]
    _, found = one.group_gradient(one.sample_group(0, 0, PROMPT), ORDER, on_policy=True)
    _, expected = other.group_gradient(other.sample_group(0, 0, PROMPT), ORDER, on_policy=True)
    assert told == [3]
    assert found is not None
    assert expected is not None
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    def never(rows: list[int]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        MicroBatches(4).map(range(4), never)


def test_samples_without_a_gradient_are_not_drawn_again() -> None:
    """GRPO's gradient flows through its anchors alone: only they are sampled with a graph."""
    rollout = make({"type": "grpo", "grpo": {"anchors": 2}}, chunk_size=1)
    drawn = rollout.sample_group(0, 0, PROMPT)
    seen: list[int] = []
    original = type(rollout.generator).__call__

    def counting(self: Any, noise: Tensor, prompt: str) -> Tensor:
        seen.append(len(noise))
        return original(self, noise, prompt)

    rollout.generator.__class__ = type("Counting", (type(rollout.generator),), {"__call__": counting})
    rollout.group_gradient(drawn, ORDER, on_policy=True)
    assert seen == [1, 1]


def test_half_precision_scales_by_powers_of_two_and_backs_off() -> None:
    """A gradient that overflows fp16 at full headroom comes out exact at less; one that never fits is an error."""
    weight = torch.ones(2, requires_grad=True)
    found = OutputGradients(torch.tensor([[3e-9], [1e-9]]), {})
    tries: list[float] = []

    class Narrow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            tries.append(grad.abs().max().item())
            return torch.where(grad.abs() > limit, torch.inf, grad)

    def sample(rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return Narrow.apply(weight[rows, None]), {}

    limit, half = 0.01, LossScale()
    (value,) = parameter_gradient(found, sample, [weight], MicroBatches(2), half=half) or []
    assert value.tolist() == pytest.approx([3e-9, 1e-9])
    assert 0.5 < tries[0] <= 1
    tries.clear()
    parameter_gradient(found, sample, [weight], MicroBatches(2), half=half)
    assert len(tries) == 1, "what sufficed is where the next group starts"
    limit = 0.0
    with pytest.raises(FloatingPointError, match="bf16"):
        parameter_gradient(found, sample, [weight], MicroBatches(2), half=half)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_says_so(bad: float) -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(FloatingPointError, match=r"optimizer\.lr"):
        parameter_gradient(
            OutputGradients(torch.tensor([[bad], [1.0]]), {}),
            lambda rows: (weight[rows, None], {}),
            [weight],
            MicroBatches(2),
        )


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        ({"type": "teacher_unet", "keys": ["mid_block"], "pool": 1}, {}),
        ({"type": "latents"}, {"tune": "full"}),
        ({"type": "latents"}, {"lora": {"rank": 4, "alpha": 8}}),
    ],
)
def test_every_mode_has_one_gradient(space: dict[str, Any], changes: dict[str, Any]) -> None:
    """φ with noise of its own, every weight of the U-Net, α ≠ r: chunks of 2 against one graph of all K, in float32."""
    method = {"drpo": {"positives": 2, "negatives": 2, "radii": [0.5, 1.0]}}
    rollout = in_float32(method, features=space, chunk_size=2, **changes)
    drawn = rollout.sample_group(0, 0, PROMPT)
    generator, seeds = rollout.generator, drawn.seeds
    _, found = rollout.group_gradient(drawn, ORDER, on_policy=True)
    x = generator(drawn.noise, PROMPT.prompt)
    x_ref = generator.draw_reference(drawn.noise, PROMPT.prompt)
    phi = lambda latents: rollout.features(latents, prompt=PROMPT.prompt, seeds=seeds)  # noqa: E731
    with torch.no_grad():
        own, base = phi(x), phi(x_ref)
    losses = []
    for key, value in phi(x).items():
        flat = [each.flatten(0, 1)[None] for each in (value, own[key], base[key])]
        rows = lambda samples: flat[1][:, [s * T + t for s in samples for t in range(T)]]  # noqa: B023, E731
        T = value.shape[1]
        weights: dict[str, Any] = {"positive_weight": 3000.0, "negative_weight": 3000.0, "radii": [0.5, 1.0]}
        preference = drift_loss(flat[0], rows((3, 1)), rows((5, 0)), **weights)
        reference = drift_loss(flat[0], flat[2], flat[1], mask_negative_self=True, **weights)
        losses.append(preference.loss.mean() + 0.2 * reference.loss.mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), generator.parameters(), allow_unused=True)
    assert found is not None
    gap = sum((a - b).square().sum().item() for a, b in zip(found, expected, strict=True) if b is not None)
    whole = sum(b.square().sum().item() for b in expected if b is not None)
    assert whole > 0
    assert (gap / whole) ** 0.5 < 1e-3
