"""One update with HPSv3 as the reward: ours against backpropagating through the reward. Time, operations, memory.

    OMP_NUM_THREADS=1 python benchmarks/hpsv3_update.py             widths divided by 8, tokens and pixels by 4; CPU
    python benchmarks/hpsv3_update.py --size full --device cuda     published shapes, bf16; wants an 80 GiB GPU
    python benchmarks/hpsv3_update.py --microbatch 1 4 --checkpoint --json out/hpsv3.json

Random weights, the same K noises of one prompt, the same generator, adapter and reward on both sides:

DRaFT   per microbatch: G, VAE decode, the reward's preprocessing and its forward pass, all with a graph, then minus its
        mean score back to the adapter. `--checkpoint` recomputes the reward's and the VAE's activations; without it
        fewer images fit. It is spared the base's samples, for which it has no use.
ours    dipole_trainer's own Rollout: draw without a graph, decode for the reward, the base's samples and the features
        (latent MAE) of both, the loss's cotangents on leaves, then G and φ again in chunks with a graph. The reward's
        forward pass has no graph and takes all K images at once.

Two ratios are printed, and they answer different questions.
- "one device" counts the reward's own forward pass in ours: one device does everything, one thing after the other. The
  published 21.62 s → 6.17 s (3.51×) is of this kind: 4 GPUs, 192 images, HPSv3 in the trainer's process, and DRaFT one
  image at a time (`--microbatch 1`). Operations alone cannot give as much: ours has at least DRaFT's forward passes,
  and a backward pass through frozen weights costs about as much again, 1.8 times as much with recomputation.
- "trainer" leaves it out: what the trainer's device is busy for, where an endpoint elsewhere ranks the groups of a
  window while they are in flight. The work is not gone, it is on another device; DRaFT has to do it where the graph is.

"backward" is autograd alone; "again" is the second forward pass of G and φ, which ours needs for it. Operations come
from torch.utils.flop_counter and depend on no machine. On one CPU thread seconds are the process's own, so that other
work on the machine disturbs them less. Before anything is timed, ours must have the gradient of Rollout.gradient, and
microbatches must not change DRaFT's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import shapes
import torch
from hpsv3_random import SIZES, Reward
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.methods import METHODS
from dipole_trainer.methods.base import FeatureSets, RankedSamples
from dipole_trainer.ranking.selection import GroupOrder, Selection, select_extremes
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import output_gradients, parameter_gradient
from dipole_trainer.training.rollout import Rollout, SampledGroup

PROMPT = PromptSpec(prompt="a red circle")
PUBLISHED = {"draft_s": 21.62, "ours_s": 6.17, "draft_backward_s": 9.99, "ours_backward_s": 0.34}
STAGES = ("generate", "decode", "reward", "base and features", "again", "backward")


# ---- the two updates ------------------------------------------------------------------------------------------------


class Meter:
    """Seconds, or operations, by stage; what an inner stage takes is not its outer one's."""

    def __init__(self, device: str, *, operations: bool = False) -> None:
        self.totals = dict.fromkeys(STAGES, 0.0)
        self._device, self._operations, self._inner = device, operations, [0.0]
        alone = not device.startswith("cuda") and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._inner.append(0.0)
        with FlopCounterMode(display=False) if self._operations else self._clock() as counter:
            yield
            self._synchronize()
        spent = float(counter.get_total_flops()) if isinstance(counter, FlopCounterMode) else counter()
        self.totals[stage] += spent - self._inner.pop()
        self._inner[-1] += spent

    @contextmanager
    def _clock(self) -> Iterator[Callable[[], float]]:
        self._synchronize()
        began = self._now()
        yield lambda: self._now() - began

    def _synchronize(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


class Draft:
    """Minus the mean score, back through reward, VAE and G, a microbatch at a time."""

    def __init__(self, generator: OneStepGenerator, reward: Reward, microbatch: int, *, checkpoint: bool) -> None:
        self.generator, self.reward, self.checkpoint = generator, reward, checkpoint
        self.micro_batches = MicroBatches(microbatch)

    def __call__(self, noise: Tensor, meter: Meter) -> list[Tensor]:
        total: list[Tensor] = []
        parameters = self.generator.parameters()

        def microbatch(rows: list[int]) -> None:
            with meter("generate"):
                x = self.generator(noise[rows], PROMPT.prompt)
            with meter("decode"):
                images = self.generator.decode_pixels(x).clamp(0, 1)
            with meter("reward"):
                loss = -self.reward(images).sum() / len(noise)
            with meter("backward"):
                part = torch.autograd.grad(loss, parameters)
                total[:] = [a.add_(b) for a, b in zip(total, part, strict=True)] if total else part

        with self._recomputing():
            self.micro_batches.map(range(len(noise)), microbatch)
        return total

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        qwen, vae = self.reward.network.qwen, self.generator.vae
        if self.checkpoint:
            qwen.gradient_checkpointing_enable({"use_reentrant": False})
            vae.enable_gradient_checkpointing()
            qwen.train(), vae.train()  # both honour it in train mode alone; neither has dropout
        try:
            yield
        finally:
            if self.checkpoint:
                qwen.gradient_checkpointing_disable()
                vae.disable_gradient_checkpointing()
                qwen.eval(), vae.eval()


class Ours:
    """A group's way through dipole_trainer's Rollout, with the reward in between where it is not elsewhere."""

    def __init__(self, rollout: Rollout, reward: Reward) -> None:
        self.rollout, self.reward = rollout, reward
        self.reward_micro_batches = MicroBatches(64)

    def __call__(self, meter: Meter, known: Sequence[float] | None = None) -> list[Tensor]:
        """The gradient. With `known` scores the reward is elsewhere."""
        with meter("generate"):
            drawn = self.rollout.sample_group(0, 0, PROMPT)
        with meter("decode"):
            images = self.rollout.decode_group(drawn)[0]
        with meter("reward"):
            scores = known or self.scores(images)
        with meter("base and features"):
            self.rollout.prepare_features(drawn)
        with meter("backward"):
            return self._gradient(drawn, self.select(np.array(scores)), meter)

    def select(self, scores: NDArray[np.float64]) -> Selection:
        chosen = select_extremes(scores, *self.rollout.settings.sides(len(scores)))
        assert isinstance(chosen, Selection), "random weights tell images apart"
        return chosen

    @torch.inference_mode()
    def scores(self, images: Any) -> list[float]:
        """As the endpoint computes them, from uint8 (K, H, W, 3)."""

        def score(rows: list[int]) -> Tensor:
            pixels = torch.from_numpy(images[rows]).to(self.rollout.generator.device)
            return self.reward(pixels.permute(0, 3, 1, 2).float() / 255)

        found: list[float] = torch.cat(self.reward_micro_batches.map(range(len(images)), score)).tolist()
        return found

    def _gradient(self, drawn: SampledGroup, chosen: Selection, meter: Meter) -> list[Tensor]:
        """Rollout.gradient, with its second forward pass metered apart."""
        rollout, x = self.rollout, drawn.x
        group = RankedSamples(
            x, drawn.phi_ranked, drawn.x_ref, drawn.phi_ref, drawn.ranked_latents, drawn.phi_ranked,
            torch.zeros(len(x)),
            chosen.positives, chosen.negatives, ranks_itself=True,
        )  # fmt: skip
        _, found = output_gradients(lambda samples: METHODS["drpo"].loss(samples, rollout.settings), group)

        def sample(rows: list[int]) -> tuple[Tensor, FeatureSets]:
            with meter("again"):
                again = rollout.generator(drawn.noise[rows], PROMPT.prompt)
                return again, rollout.features(again, prompt=PROMPT.prompt, seeds=[drawn.seeds[row] for row in rows])

        share = parameter_gradient(found, sample, rollout.generator.parameters(), rollout.micro_batches)
        assert share is not None
        return share


# ---- measuring ------------------------------------------------------------------------------------------------------

Update = Callable[[Meter], list[Tensor]]


def operations(update: Update, device: str) -> tuple[dict[str, float], list[Tensor]]:
    """Floating-point operations of each stage, and the gradient; attention is counted only where it is spelled out."""
    meter = Meter(device, operations=True)
    with sdpa_kernel(SDPBackend.MATH):
        return meter.totals, update(meter)


def seconds(updates: dict[str, Update], device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each update's stages and of the whole; the updates take turns, every other time backwards."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in updates}
    for turn in range(repeats):
        for name, update in list(updates.items())[:: 1 if turn % 2 == 0 else -1]:
            meter = Meter(device)
            update(meter)
            taken[name].append({**meter.totals, "total": sum(meter.totals.values())})
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in taken.items()}


def check(ours: Ours, noise: Tensor, gradients: Sequence[list[Tensor]], bound: float) -> None:
    """What is timed is what the trainer does, and the same gradient whatever the microbatch."""
    drawn = ours.rollout.sample_group(0, 0, PROMPT)
    order = GroupOrder(scores := np.array(ours.scores(ours.rollout.decode_group(drawn)[0])), ours.select(scores))
    _, share = ours.rollout.group_gradient(drawn, order, on_policy=True)
    assert share is not None
    assert torch.equal(drawn.noise, noise), "both sides have the same noises"
    assert measuring.difference(share, ours(Meter(str(noise.device)))) < bound, "the timed update is not the trainer's"
    first, *others = gradients
    assert all(measuring.difference(first, other) < bound for other in others), "microbatches change DRaFT's gradient"


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    size, full = SIZES[args.size], args.size == "full"
    k = args.candidates or size.candidates
    own = {"positives": min(size.anchors, k // 2), "negatives": min(size.anchors, k // 2)}
    spec = TrainSpec.model_validate({
        "prompts": [PROMPT], "rewards": [{"name": "hpsv3"}], "candidates": k, "prompts_per_step": 1,
        "chunk_size": args.chunk, "precision": "bf16" if full else "fp32", "method": {"drpo": own},
    })  # fmt: skip
    generator = shapes.generator(size.shape, spec, args.device)
    reward = Reward(size, args.device, torch.bfloat16 if full else torch.float32)
    ours = Ours(Rollout(spec, generator, shapes.latent_mae(size.shape, args.device), MicroBatches(args.chunk)), reward)
    drawn = ours.rollout.sample_group(0, 0, PROMPT)
    known = ours.scores(ours.rollout.decode_group(drawn)[0])
    drafts = {f"DRaFT {m}": Draft(generator, reward, m, checkpoint=args.checkpoint) for m in args.microbatch}
    updates: dict[str, Update] = {"ours": ours, **{name: partial(draft, drawn.noise) for name, draft in drafts.items()}}
    counted = {name: operations(update, args.device) for name, update in updates.items()}
    check(ours, drawn.noise, [counted[name][1] for name in drafts], 0.1 if full else 1e-3)
    memory = {
        name: measuring.peak(partial(update, Meter(args.device)), args.device)[1] for name, update in updates.items()
    }
    memory["trainer"] = measuring.peak(partial(ours, Meter(args.device), known), args.device)[1]
    taken = seconds(updates, args.device, args.repeats)
    print(f"{args.size}, K {k}, chunks of {ours.rollout.micro_batches.size}, {args.device}, {spec.precision}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.repeats}")  # fmt: skip
    spent = {name: totals for name, (totals, _) in counted.items()}
    return [report(name, draft, spent, memory, taken) for name, draft in drafts.items()]


def report(
    name: str,
    draft: Draft,
    spent: dict[str, dict[str, float]],
    memory: dict[str, int],
    taken: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Print one comparison, and return it."""
    print(f"\nDRaFT in microbatches of {draft.micro_batches.size}{', recomputing' if draft.checkpoint else ''}")
    print(f"{'':>18} {'DRaFT s':>9} {'ours s':>9}  {'DRaFT GFLOP':>12} {'ours GFLOP':>12}")
    for stage in STAGES:
        print(f"{stage:>18} {taken[name][stage]:9.3f} {taken['ours'][stage]:9.3f}  "
              f"{spent[name][stage] / 1e9:12.1f} {spent['ours'][stage] / 1e9:12.1f}")  # fmt: skip
    ratios = {}
    for what, left in (("one device", ()), ("trainer", ("reward",))):
        for unit, both in (("time", taken), ("operations", spent)):
            ratios[f"{what}, {unit}"] = _sum(both[name]) / _sum(both["ours"], left)
    for what, parts in (("backward alone", ("backward",)), ("backward and again", ("backward", "again"))):
        for unit, both in (("time", taken), ("operations", spent)):
            ratios[f"{what}, {unit}"] = both[name]["backward"] / sum(both["ours"][part] for part in parts)
    ratios["memory, one device"] = memory[name] / memory["ours"]
    ratios["memory, trainer"] = memory[name] / memory["trainer"]
    for what, ratio in ratios.items():
        print(f"{what:>30} {ratio:6.2f} ×")
    print(f"{'peak MiB':>30} DRaFT {memory[name] / 2**20:.0f}, ours {memory['ours'] / 2**20:.0f}, "
          f"of which the trainer's alone {memory['trainer'] / 2**20:.0f}")  # fmt: skip
    return {
        "microbatch": draft.micro_batches.size, "checkpoint": draft.checkpoint, "ratios": ratios,
        "draft_s": taken[name], "ours_s": taken["ours"], "draft_flop": spent[name], "ours_flop": spent["ours"],
        "draft_bytes": memory[name], "ours_bytes": memory["ours"], "trainer_bytes": memory["trainer"],
    }  # fmt: skip


def _sum(stages: dict[str, float], left: Sequence[str] = ()) -> float:
    return sum(value for stage, value in stages.items() if stage not in (*left, "total"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--candidates", type=int, help="K; as published with full (24), 4 with small")
    parser.add_argument("--microbatch", type=int, nargs="+", default=[1, 4], help="images of one graph of DRaFT")
    parser.add_argument("--chunk", type=int, default=8, help="images of one graph of ours")
    parser.add_argument("--checkpoint", action="store_true", help="DRaFT recomputes the reward's and VAE's activations")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--force", action="store_true", help="skip the look at free memory")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.force:
        measuring.require_memory(args.size, SIZES[args.size].needed_gib, args.device)
    rows = compare(args)
    print(f"\npublished, one device, 192 images: {PUBLISHED}")
    measuring.write(args, published=PUBLISHED, rows=rows)


if __name__ == "__main__":
    main()
