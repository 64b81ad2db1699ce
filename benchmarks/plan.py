"""A plan against a real update of the same job: operations and peak memory, planned over real, and seconds of each.

    python benchmarks/plan.py                                             tiny-turbo on this machine's CPU
    python benchmarks/plan.py --size small --candidates 24 --chunk 8      SD-Turbo's widths over 8, random weights
    python benchmarks/plan.py --size sd-turbo --device cuda --precision bf16

The plan runs the update on tensors without memory; the real one runs it on networks with random weights. Peaks are of
tensors alive beyond weights, counted per storage on the CPU and by the allocator on CUDA. Of time a plan gives a range,
shares of the device's peak rate: the real update's second run stands beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import shapes
import torch
from torch.utils.flop_counter import FlopCounterMode

from dipole_trainer import features, generators
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.planning import fake_models
from dipole_trainer.planning.devices import measure_device
from dipole_trainer.planning.job_plan import parse_job, plan_job
from dipole_trainer.planning.update_cost import FLOP_FORMULAS, measure_update
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec
from dipole_trainer.training.rollout import Rollout

PROMPT = PromptSpec(prompt="a red circle")


def main(args: argparse.Namespace) -> None:
    half = args.candidates // 2
    spec = parse_job({
        "model": "tiny-turbo" if args.size == "tiny" else "sd-turbo", "candidates": args.candidates,
        "chunk_size": args.chunk, "precision": args.precision, "prompts_per_step": 1,
        "method": {"type": "drpo", "drpo": {"positives": half, "negatives": half}},
    })  # fmt: skip
    if args.size != "tiny":
        # the plan's shape of this name is the benchmark's
        fake_models.PUBLISHED_PIPELINES["sd-turbo"] = shapes.SHAPES[args.size]
    nowhere, started = Path("no-models-here"), time.perf_counter()
    planned = measure_update(spec, fake_models.build_fake_models(spec, nowhere))
    planning_s = time.perf_counter() - started
    if args.size == "tiny":
        generator = generators.build_generator(spec, models_dir=nowhere, device=args.device)
        phi = features.build_features(spec.features, generator, models_dir=nowhere)
    else:
        generator, phi = shapes.generator(args.size, spec, args.device), shapes.latent_mae("sd-turbo", args.device)
    rollout = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size))
    generator.embed_prompt(PROMPT.prompt)
    order = GroupOrder(np.linspace(1, 0, args.candidates), Selection(tuple(range(half)), tuple(range(half, 2 * half))))

    def update() -> Any:
        drawn = rollout.sample_group(0, 0, PROMPT)
        rollout.decode_group(drawn)
        rollout.prepare_features(drawn)
        return rollout.group_gradient(drawn, order, on_policy=True)

    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as flops:
        update()
    _, peak = measuring.peak(update, args.device)
    started = time.perf_counter()
    update()
    if args.device != "cpu":
        torch.cuda.synchronize()
    real_s = time.perf_counter() - started
    (plan,) = plan_job(spec, models_dir=nowhere, devices=[measure_device(args.device)])
    highest = planned.peak_bytes() + planned.group_bytes
    row = {
        "operations_ratio": planned.operations / flops.get_total_flops(), "peak_ratio": highest / peak,
        "planned_teraflop": planned.operations / 1e12, "planned_peak_bytes": highest, "real_peak_bytes": peak,
        "real_s": real_s, "planned_s": plan.seconds_per_update, "planning_s": planning_s,
    }  # fmt: skip
    print(f"{args.size}, K {args.candidates}, chunks of {args.chunk}, {args.device}, {args.precision}: planned / real")
    low, high = plan.seconds_per_update
    print(f"operations {row['operations_ratio']:.4f}   peak {row['peak_ratio']:.3f} "
          f"({highest / 2**20:.0f} and {peak / 2**20:.0f} MiB)")  # fmt: skip
    print(f"one update took {real_s:.2f} s; planned {low:.2f} to {high:.2f} ({plan.device}, rates measured); "
          f"the plan took {planning_s:.1f} s")  # fmt: skip
    measuring.write(args, **row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", *shapes.SHAPES], default="tiny")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write what was found")
    main(parser.parse_args())
