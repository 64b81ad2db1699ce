"""Does DrPO align the generator, and is it the ranking that does it?

    python benchmarks/alignment.py                     5 seeds, base, DrPO and the random-ranking control
    python benchmarks/alignment.py --steps 100 --seeds 2 --json out/alignment.json

Every arm sees the same prompts, noises, candidates per update and number of updates; the control gets the same scores
handed to other candidates at random. All are evaluated on the held-out prompts with the same noises. The interval of a
difference is over prompts and seeds: both are resampled, all seeds sharing a draw's prompts (bootstrap, 4000 draws);
Student's interval over the seeds alone stands beside it. `strict` pools the prompts, `macro` averages the categories.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, Any]] = {"drpo": {}, "random": {"shuffle_ranks": True}}  # laid over method.drpo


def spec_for(arm: str, seed: int, steps: int, overrides: dict[str, Any]) -> Any:
    from dipole.tiny.job import demo_job, demo_prompts
    from dipole_trainer.spec import TrainSpec

    job = {**demo_job(steps=steps), "prompts": demo_prompts(held_out=False)}
    job["evaluation"]["prompts"] = demo_prompts(held_out=True)
    drpo = {**job["method"]["drpo"], **ARMS[arm], **overrides.get("drpo", {})}
    rest = {key: value for key, value in overrides.items() if key != "drpo"}
    return TrainSpec.model_validate({**job, **rest, "seed": seed, "method": {"type": "drpo", "drpo": drpo}})


def run(arm: str, seed: int, steps: int, threads: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train one arm with one seed; returns strict and graded of each held-out prompt, and the base's."""
    import torch

    from dipole_rewards.rewards.colourfulness import Colourfulness
    from dipole_rewards.rewards.shapes import Shapes
    from dipole_trainer import evaluate, session
    from dipole_trainer.groups import RewardResult
    from dipole_trainer.inprocess import InProcessRanker

    torch.set_num_threads(threads)
    spec = spec_for(arm, seed, steps, overrides)
    plugins = {"shapes": Shapes(), "colourfulness": Colourfulness()}

    def scorer(name: str) -> Any:
        def score(prompt: str, images: Any, metadata: Any) -> RewardResult:
            found = plugins[name].score(prompt=prompt, images=list(images), metadata=metadata)
            parts = {
                key: tuple(found.sub_scores[k][key] for k in range(len(images)))
                for key in (found.sub_scores or [{}])[0]
            }
            return RewardResult(scores=tuple(found.scores), sub_scores=parts)

        return score

    rank = InProcessRanker({reward.name: scorer(reward.name) for reward in spec.rewards}, spec.rewards, threads=1)
    events: list[dict[str, Any]] = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        session.run(
            spec, job_id="bench", workdir=work, rank=rank, control=lambda: "run",
            on_event=lambda kind, data: events.append({"type": kind, **data}),
        )  # fmt: skip
        scored = {step: evaluate.read(work / f"evaluation/step-{step}.json") for step in (0, steps)}
    rank.close()
    final = next(event for event in reversed(events) if event["type"] == "evaluation")
    means = {
        step: {part: evaluate.prompt_means(rows, f"shapes.{part}") for part in ("strict", "graded")}
        for step, rows in scored.items()
    }
    return {
        "arm": arm, "seed": seed, "cpu_s": time.process_time() - began, "base": means[0], "tuned": means[steps],
        "tags": [row.tag for row in scored[0]], "diversity_ratio": final["diversity_ratio"],
        "train": [event["rewards"] for event in events if event["type"] == "step"],
    }  # fmt: skip


def interval(differences: Any, draws: int = 4000) -> tuple[float, float, float]:
    """Mean and 95 % interval of (seeds, prompts) differences, resampling both; all seeds share a draw's prompts."""
    import numpy as np

    values = np.asarray(differences, float)
    rng = np.random.default_rng(0)
    seeds, prompts = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)].mean() for _ in range(draws)
    ]
    return float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np

    by_arm = {arm: sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"]) for arm in ARMS}
    table: dict[str, Any] = {}
    for part in ("strict", "graded"):
        tuned = {arm: np.array([r["tuned"][part] for r in rows]) for arm, rows in by_arm.items() if rows}
        base = np.array([r["base"][part] for r in results if r["arm"] == results[0]["arm"]])
        table[part] = {"base": float(base.mean()), **{arm: float(values.mean()) for arm, values in tuned.items()}}
        table[part] |= {f"{arm}_by_seed": values.mean(1).round(4).tolist() for arm, values in tuned.items()}
        for arm, values in tuned.items():
            table[part][f"{arm} - base"] = interval(values - base[:1])
        if len(tuned) == 2:
            table[part]["drpo - random"] = interval(tuned["drpo"] - tuned["random"])
            table[part]["ratio drpo / random"] = table[part]["drpo"] / max(table[part]["random"], 1e-9)
    if len(tuned) == 2:  # strict, as the last of the loop above is graded
        table |= _by_category(by_arm)
    table["diversity_ratio"] = {
        arm: float(np.mean([r["diversity_ratio"] for r in rows])) for arm, rows in by_arm.items() if rows
    }
    table["cpu_s_per_run"] = float(np.mean([r["cpu_s"] for r in results]))
    return table


def _by_category(by_arm: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Strict per category and their plain average, and DrPO's lead over the control, ± Student over seeds."""
    import numpy as np
    from scipy import stats

    tags = by_arm["drpo"][0]["tags"]
    strict = {arm: np.array([run["tuned"]["strict"] for run in runs]) for arm, runs in by_arm.items()}
    strict["base"] = np.array([by_arm["drpo"][0]["base"]["strict"]])
    table: dict[str, Any] = {}
    macro: dict[str, list[Any]] = {arm: [] for arm in strict}
    for tag in sorted(set(tags)):
        rows = [index for index, each in enumerate(tags) if each == tag]
        by_seed = {arm: values[:, rows].mean(1) for arm, values in strict.items()}
        table[tag] = {"prompts": len(rows), **{arm: round(float(values.mean()), 4) for arm, values in by_seed.items()}}
        for arm, values in by_seed.items():
            macro[arm].append(values)
    average = {arm: np.mean(values, axis=0) for arm, values in macro.items()}
    pooled, lead = strict["drpo"].mean(1) - strict["random"].mean(1), average["drpo"] - average["random"]
    quantile = stats.t.ppf(0.975, len(lead) - 1)
    over_seeds = {
        name: [float(values.mean()), float(quantile * values.std(ddof=1) / len(values) ** 0.5)]
        for name, values in (("strict", pooled), ("macro", lead))
    }
    return {
        "by_category": table,
        "macro": {arm: float(values.mean()) for arm, values in average.items()},
        "drpo - random, ± over seeds": over_seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default="drpo,random")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each run")
    parser.add_argument("--set", default="{}", help="JSON laid over the job, to try settings")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tasks = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms.split(",")]
    overrides = json.loads(arguments.set)
    with ProcessPoolExecutor(min(arguments.processes, len(tasks))) as pool:
        futures = [pool.submit(run, arm, seed, arguments.steps, arguments.threads, overrides) for arm, seed in tasks]
        results = []
        for future in futures:
            results.append(future.result())
            last = results[-1]
            means = " ".join(
                f"{part} {sum(last['tuned'][part]) / len(last['tuned'][part]):.3f}" for part in ("strict", "graded")
            )
            rest = f"diversity x{last['diversity_ratio']:.2f} {last['cpu_s']:.0f} CPU s"
            print(f"{last['arm']:8} seed {last['seed']} {means} {rest}", flush=True)
    table = report(results)
    print(json.dumps(table, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"steps": arguments.steps, "set": overrides, **table, "runs": results}))
    if not math.isfinite(table["strict"]["base"]):
        raise SystemExit("the base has no scores")


if __name__ == "__main__":
    main()
