"""One group's update, ours against a plain loop: same seeds, same gradient; time and peak memory.

    python benchmarks/step.py                                      small, K 8 to 64
    python benchmarks/step.py --candidates 24 --chunk 8 --repeats 5 --json out/step.json
    python benchmarks/step.py --size sd-turbo --device cuda --precision bf16      random weights of the real shapes
    python benchmarks/step.py --size tiny                          the tiny world's own networks and features

Both draw K images of one prompt, decode them for the reward (whose own time is not part of this: the order is given),
and end with the gradient of DrPO's loss in the adapter's parameters. Features are the latent MAE's.

The plain loop is written straight down from the formulas: the prompt is encoded K times; the frozen base is a copy of
the U-Net; G's K samples and φ of them are in one graph; positives and negatives are decoded, and encoded by the VAE
again; φ is taken of samples, anchors and the base's samples apart. With `--recompute` its U-Net recomputes activations
on the way back: less memory, one more pass. It is not the released loop, which gathers its anchors by index and always
recomputes: ratios here say nothing of that one.

Ours, as dipole_trainer.training.rollout does it: the prompt is encoded once and kept; K samples are drawn without a
graph; features are taken once, anchors gathered from them; the base is the same network with its adapter off; the
loss's cotangents are taken without a graph of G; then G and φ run again with a graph. Every pass takes `chunk` samples
at a time, and the VAE is channels-last. That is one pass of G more than the plain loop has.

With one chunk of all K the gradients must agree to 1e-4 in float32. Chunks round φ differently, which the published
narrow radii magnify; the table shows by how much, and in float64 it is nought
(tests/trainer/training/test_chunked_gradient.py). So that the two can agree at all, the plain loop's anchors pass
through the VAE for their cost alone, and φ is of the latents: an autoencoder with random weights gives back another
image.

`time` is ours over plain. `without` leaves out what both do for the reward, decoding K images. Peak memory is that of
tensors alive at once beyond what was there before (the weights, of which the plain loop has the U-Net twice): counted
per storage on the CPU, by the allocator on CUDA.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import measuring
import numpy as np
import shapes
import torch
from torch import Tensor, nn

from dipole_trainer import features, generators
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.generators import vae
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.methods.drift import drift_loss
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import DrpoSpec, PromptSpec, TrainSpec
from dipole_trainer.training.rollout import Rollout

PROMPT = PromptSpec(prompt="a red circle")
SAME = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}  # bounds of the gradients' relative difference, all K in one chunk
NEAR = {"fp32": 2e-2, "bf16": 1e-1, "fp16": 1e-1}  # and in chunks
NEEDED_GIB = {"tiny": 1, "small": 2, "sd-turbo": 40, "sdxl-turbo": 60}


def spec_for(args: argparse.Namespace, candidates: int, chunk: int) -> TrainSpec:
    return TrainSpec.model_validate({
        "prompts": [PROMPT], "rewards": [{"name": "r"}], "candidates": candidates, "prompts_per_step": 1,
        "chunk_size": chunk, "precision": args.precision,
        "method": {"drpo": {"positives": min(8, candidates // 2), "negatives": min(8, candidates // 2)}},
    })  # fmt: skip


def build(args: argparse.Namespace) -> tuple[OneStepGenerator, Any]:
    """The generator, its adapter disturbed, and φ."""
    spec = spec_for(args, 8, 8)
    if args.size == "tiny":
        generator = generators.build_generator(spec, models_dir=Path(), device=args.device)
        shapes.disturb(generator)
        return generator, features.build_features(spec.features, generator, models_dir=Path())
    return shapes.generator(args.size, spec, args.device), shapes.latent_mae(args.size, args.device)


# ---- the two updates ------------------------------------------------------------------------------------------------


class Stages:
    """Seconds by stage."""

    def __init__(self, cuda: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = cuda

    @contextmanager
    def of(self, name: str) -> Any:
        began = time.perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Plain:
    """The plain loop's update; see the module's docstring."""

    def __init__(self, generator: OneStepGenerator, phi: Any, spec: TrainSpec, recompute: bool) -> None:
        self.generator, self.phi, self.recompute = generator, phi, recompute
        self.spec = cast(DrpoSpec, spec.method.settings)
        self.reference = copy.deepcopy(generator.unet)
        self.reference.disable_adapters()
        self.vae = copy.deepcopy(generator.vae).to(memory_format=torch.contiguous_format)

    def __call__(self, noise: Tensor, seeds: list[int], chosen: Selection, stages: Stages) -> list[Tensor]:
        if self.recompute:
            self.generator.unet.enable_gradient_checkpointing()
        try:
            return self._gradient(noise, chosen, stages)
        finally:
            self.generator.unet.disable_gradient_checkpointing()

    def _gradient(self, noise: Tensor, chosen: Selection, stages: Stages) -> list[Tensor]:
        rows = {"best": list(chosen.positives), "worst": list(chosen.negatives)}
        with stages.of("draw"):
            x = self._draw(self.generator.unet, noise)
        with stages.of("reference"), torch.no_grad():
            x_ref = self._draw(self.reference, noise)
        with stages.of("decode for the reward"), torch.no_grad():
            for part in x.detach().split(4):
                vae.decode_latents(self.vae, part)
        with stages.of("anchors again"), torch.no_grad():
            for part in x.detach()[rows["best"] + rows["worst"]].split(4):
                vae.encode_to_latents(self.vae, vae.decode_latents(self.vae, part))
        with stages.of("features"):
            anchors = {"best": x[rows["best"]], "worst": x[rows["worst"]], "base": x_ref}
            with torch.no_grad():
                encoded = {name: self._phi(latents.detach()) for name, latents in anchors.items()}
            own = self._phi(x)
            encoded["own"] = {key: value.detach() for key, value in own.items()}
        with stages.of("backward"):
            loss = torch.stack([self._loss(key, value, encoded) for key, value in own.items()]).mean()
            return list(torch.autograd.grad(loss, self.generator.parameters()))

    def _phi(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.phi(x, prompt=PROMPT.prompt, seeds=[0] * len(x))
        return found

    def _loss(self, key: str, value: Tensor, encoded: dict[str, dict[str, Tensor]]) -> Tensor:
        flat = value.flatten(0, 1)[None]
        best, worst, base, own = (encoded[name][key].flatten(0, 1)[None] for name in ("best", "worst", "base", "own"))
        spec = self.spec
        preference = drift_loss(
            flat, best, worst, positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
            radii=spec.radii, kernel=spec.kernel,
        )  # fmt: skip
        reference = drift_loss(
            flat, base, own, positive_weight=spec.ref_positive_weight, negative_weight=spec.ref_negative_weight,
            radii=spec.radii, kernel=spec.kernel, mask_negative_self=True,
        )  # fmt: skip
        return preference.loss.mean() + spec.ref_lambda * reference.loss.mean()

    def _draw(self, unet: nn.Module, noise: Tensor) -> Tensor:
        """G with a U-Net of one's own, and the prompt encoded for every sample."""
        g = self.generator
        with torch.no_grad():
            g.pipeline.encode_prompt([PROMPT.prompt] * len(noise), g.device, 1, False)
        before, g._trained.network = g._trained.network, unet
        try:
            return g(noise, PROMPT.prompt)
        finally:
            g._trained.network = before


class Ours:
    """The loop's update."""

    def __init__(self, generator: OneStepGenerator, phi: Any, spec: TrainSpec) -> None:
        self.rollout = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size))

    def __call__(self, noise: Tensor, seeds: list[int], chosen: Selection, stages: Stages) -> list[Tensor]:
        with stages.of("draw"):
            drawn = self.rollout.sample_group(0, 0, PROMPT)
        with stages.of("decode for the reward"):
            self.rollout.decode_candidates(drawn.ranked_latents)[0]
        with stages.of("reference and features"):
            self.rollout.prepare_features(drawn)
        with stages.of("backward"):
            _, found = self.rollout.group_gradient(drawn, GroupOrder(np.zeros(len(noise)), chosen), on_policy=True)
        assert found is not None
        return found


# ---- measuring ------------------------------------------------------------------------------------------------------


Update = Callable[[Tensor, list[int], Selection, Stages], list[Tensor]]


def peak_of(update: Update, noise: Tensor, seeds: list[int], chosen: Selection) -> tuple[list[Tensor], int]:
    """(gradient, peak bytes)."""
    gradient, peak = measuring.peak(lambda: update(noise, seeds, chosen, Stages(noise.is_cuda)), str(noise.device))
    return [each.cpu() for each in gradient], peak


def times_of(updates: dict[str, Update], noise: Tensor, seeds: list[int], chosen: Selection, repeats: int) -> Any:
    """{name: [stages of each repeat]}, taken turn about so that what else the machine does hits all alike."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in updates}
    for _ in range(repeats):
        for name, update in updates.items():
            stages = Stages(noise.is_cuda)
            update(noise, seeds, chosen, stages)
            taken[name].append(stages.seconds)
    return taken


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    generator, phi = build(args)
    weights = sum(p.numel() * p.element_size() for p in generator.unet.parameters())
    how = "recomputing, " if args.recompute else ""
    print(f"{args.size}, {args.device}, {args.precision}, {how}{torch.get_num_threads()} threads; "
          f"the plain loop's second U-Net is {weights / 2**20:.1f} MiB, not counted below")  # fmt: skip
    print(f"{'K':>4} {'chunk':>6} {'plain s':>9} {'ours s':>9} {'time':>7} {'without':>8} {'plain MiB':>10} "
          f"{'ours MiB':>9} {'memory':>7} {'gradient difference':>20}")  # fmt: skip
    rows = []
    for k in args.candidates:
        plain = Plain(generator, phi, spec_for(args, k, k), args.recompute)
        ours = {chunk: Ours(generator, phi, spec_for(args, k, chunk)) for chunk in args.chunk}
        drawn = ours[args.chunk[0]].rollout.sample_group(0, 0, PROMPT)
        noise, seeds = drawn.noise, list(drawn.seeds)
        order = torch.randperm(k, generator=torch.Generator().manual_seed(k)).tolist()
        sides = min(8, k // 2)
        chosen = Selection(tuple(order[:sides]), tuple(order[-sides:]))
        expected, plain_peak = peak_of(plain, noise, seeds, chosen)
        in_one = Ours(generator, phi, spec_for(args, k, k))(noise, seeds, chosen, Stages(noise.is_cuda))
        whole = measuring.difference(expected, [each.cpu() for each in in_one])
        assert whole < SAME[args.precision], f"the two updates have different gradients: {whole:.1e} at K = {k}"
        del in_one
        found = {chunk: peak_of(update, noise, seeds, chosen) for chunk, update in ours.items()}
        taken = times_of({"plain": plain, **ours}, noise, seeds, chosen, args.repeats)
        for chunk in args.chunk:
            row = row_of(k, chunk, taken["plain"], taken[chunk], plain_peak, found[chunk][1])
            row["gradient_difference_whole"] = whole
            row["gradient_difference"] = measuring.difference(expected, found[chunk][0])
            rows.append(row)
            tell(row)
            assert row["gradient_difference"] < NEAR[args.precision], "chunks change the gradient"
        del plain
    return rows


def row_of(k: int, chunk: int, plain: Any, ours: Any, plain_peak: int, peak: int) -> dict[str, Any]:
    """Medians, and their ratios."""
    whole = [statistics.median(sum(each.values()) for each in taken) for taken in (plain, ours)]
    reward = "decode for the reward"
    without = [
        statistics.median(sum(s for name, s in each.items() if name != reward) for each in taken)
        for taken in (plain, ours)
    ]
    return {
        "candidates": k, "chunk": chunk, "plain_s": whole[0], "ours_s": whole[1], "time_ratio": whole[1] / whole[0],
        "speedup": whole[0] / whole[1], "without_reward_decode_ratio": without[1] / without[0],
        "plain_bytes": plain_peak, "ours_bytes": peak, "memory_ratio": peak / plain_peak,
        "stages": {who: {name: statistics.median(each[name] for each in taken) for name in taken[0]}
                   for who, taken in (("plain", plain), ("ours", ours))},
    }  # fmt: skip


def tell(row: dict[str, Any]) -> None:
    mib = {who: row[f"{who}_bytes"] / 2**20 for who in ("plain", "ours")}
    print(f"{row['candidates']:4} {row['chunk']:6} {row['plain_s']:9.3f} {row['ours_s']:9.3f} {row['time_ratio']:7.2f} "
          f"{row['without_reward_decode_ratio']:8.2f} {mib['plain']:10.1f} {mib['ours']:9.1f} "
          f"{row['memory_ratio']:7.2f} {row['gradient_difference']:20.1e}")  # fmt: skip
    for who, stages in row["stages"].items():
        print(f"{'':11} {who}: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(NEEDED_GIB), default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--candidates", type=int, nargs="+", default=[8, 16, 24, 32, 64])
    parser.add_argument("--chunk", type=int, nargs="+", default=[8])
    parser.add_argument("--recompute", action="store_true", help="the plain loop's U-Net recomputes its activations")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--force", action="store_true", help="skip the look at free memory")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.force:
        measuring.require_memory(args.size, NEEDED_GIB[args.size], args.device)
    rows = compare(args)
    measuring.write(args, rows=rows)


if __name__ == "__main__":
    main()
