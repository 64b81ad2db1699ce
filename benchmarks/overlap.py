"""Does the trainer wait for its rewards? Images a second and idle share as reward latency grows.

    python benchmarks/overlap.py                       tiny-turbo, latencies 0 to 2 of generation + update
    python benchmarks/overlap.py --steps 12 --json out/overlap.json

The same training, the loop's own, with a reward that sleeps. First without latency, to learn how long generation (G),
features and the update (U) of a window take on this machine; then with latencies in units of G + U, for rankings as
fresh as can be (`max_staleness` 0) and one window old. Idle is the time that the loop waited for an answer with nothing
else to do, over the whole. All of a window is in flight at once, so with work W = G + features + U of P prompts and
latency L a step takes max(W, G + L + U/P) when nothing may be stale: from L = features + U(P-1)/P on, no order of work
can fill the wait. One window ahead, the wait is filled up to L = W.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dipole.tiny.job import build_demo_job, build_demo_prompts
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.training import session


def brightness(prompt: str, images: Any, metadata: Any) -> list[float]:
    return [float(value) for value in images.mean((1, 2, 3))]


def run(args: argparse.Namespace, latency: float, staleness: int) -> list[dict[str, float]]:
    """Each step's seconds: generate, wait, update, and the whole of it; the first two steps are left out."""
    job = {
        **build_demo_job(steps=args.steps + 2),
        "prompts": build_demo_prompts(held_out=False),
        "rewards": [{"name": "bright"}],
    }
    job |= {"evaluation": {}, "max_staleness": staleness, "prompts_per_step": args.prompts, "checkpoint_every": 10**6}
    spec = TrainSpec.model_validate(job)
    rank = InProcessRanker(
        {"bright": brightness}, spec.rewards, delays={"bright": latency}, threads=args.prompts * (staleness + 1)
    )
    ends: list[float] = []
    steps: list[dict[str, float]] = []

    def on_event(kind: str, data: dict[str, Any]) -> None:
        if kind == "step":
            ends.append(data["step"] * spec.prompts_per_step * spec.candidates / data["images_per_s"])
            steps.append(data["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        session.run_session(
            spec, job_id="bench", workdir=Path(folder), models_dir=Path(folder), ranker=rank, control=lambda: "run",
            on_event=on_event,
        )  # fmt: skip
    rank.close()
    whole = [later - end for end, later in pairwise(ends)]
    return [{**step, "whole": seconds} for step, seconds in zip(steps[2:], whole[1:], strict=True)]


def median(steps: list[dict[str, float]], name: str) -> float:
    return statistics.median(step[name] for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="measured, after two that are not")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    free = run(args, 0.0, 0)
    unit, work = median(free, "generate") + median(free, "update"), median(free, "whole")
    images = args.prompts * build_demo_job(steps=1)["candidates"]
    print(f"tiny-turbo, {args.prompts} prompts of {images // args.prompts}, {args.threads} thread(s): generation "
          f"{median(free, 'generate'):.2f} s, update {median(free, 'update'):.2f} s, a step {work:.2f} s, "
          f"{images / work:.1f} images/s")  # fmt: skip
    print(f"{'latency / (G + U)':>18} {'latency s':>10} {'staleness':>10} {'images/s':>9} {'ratio':>6} {'idle':>7}")
    rows = []
    for latency in args.latencies:
        for staleness in (0, 1):
            steps = run(args, latency * unit, staleness)
            whole = sum(step["whole"] for step in steps)
            row = {"latency": latency, "latency_s": latency * unit, "staleness": staleness,
                   "images_per_s": images * len(steps) / whole, "ratio": work * len(steps) / whole,
                   "idle": sum(step["wait"] for step in steps) / whole}  # fmt: skip
            rows.append(row)
            print(f"{latency:18.2f} {row['latency_s']:10.2f} {staleness:10} {row['images_per_s']:9.1f} "
                  f"{row['ratio']:6.2f} {row['idle']:7.1%}", flush=True)  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"generate_and_update_s": unit, "step_s": work, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
