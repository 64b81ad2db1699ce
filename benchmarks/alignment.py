"""Which method aligns the generator, and is it the ranking that does it?

    python benchmarks/alignment.py --tune              six trials a method on one seed; writes alignment-settings.json
    python benchmarks/alignment.py                     5 seeds, every method, the control, staleness 1 and 2
    python benchmarks/alignment.py --arms drpo,random --seeds 2 --json out/alignment.json --plot out/alignment.png

Every arm sees the same prompts, seeds of noises, candidates per update and number of updates, on the tiny world.
`random` is DrPO on shuffled scores, because any drift can help an undertrained base. `drpo-1` and `drpo-2` train on
rankings that are one and two windows old. All are evaluated on the same held-out prompts and noises, by a reward that
they were trained for (`shapes`) and one that they were not (`colourfulness`).

Tuning is the same for all: six trials, of learning rate and one knob of the method's own (TRIALS), on one seed that the
result does not use, judged on training prompts with other noises; nothing is tuned on held-out prompts. The control
takes DrPO's settings.

Intervals are over prompts and seeds: both are resampled, all seeds sharing a draw's prompts (bootstrap, 4000 draws).
Student's interval over the seeds alone stands beside it. `strict` pools the prompts, `macro` averages the categories.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dipole.errors import NothingToLearn
from dipole_trainer.evaluation import results
from dipole_trainer.storage import job_layout

SETTINGS = Path(__file__).with_name("alignment-settings.json")
ARMS = ("drpo", "random", "dpo", "grpo", "pso", "sft", "drpo-1", "drpo-2")
TUNED = ("drpo", "dpo", "grpo", "pso", "sft")
TUNING_SEED = 1000
RATES = (2e-4, 5e-4, 1.5e-3)
DEMO_RADII, PUBLISHED_RADII = [0.2, 0.5, 1.0], [0.02, 0.05, 0.2]
TRIALS: dict[str, list[dict[str, Any]]] = {
    "drpo": [{"lr": lr, "own": {"radii": radii}} for radii in (DEMO_RADII, PUBLISHED_RADII) for lr in RATES],
    "dpo": [{"lr": lr, "own": {"beta": beta}} for beta in (30.0, 300.0) for lr in RATES],
    "grpo": [{"lr": lr, "own": {"temperature": t}} for t in (1.0, 0.1) for lr in RATES],
    "pso": [{"lr": lr, "own": {"std": std}} for std in (0.05, 0.2) for lr in RATES],
    "sft": [{"lr": lr, "own": {}} for lr in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4)],
}
SIDES: dict[str, dict[str, Any]] = {
    "drpo": {"positives": 8, "negatives": 8, "mask_self": True},
    "dpo": {"positives": 8, "negatives": 8},
}


def method_of(arm: str) -> tuple[str, int]:
    """(method, staleness) of an arm."""
    kind, _, stale = arm.partition("-")
    return kind, int(stale or 0)


def spec_for(arm: str, seed: int, steps: int, chosen: dict[str, Any], *, tuning: bool) -> Any:
    from dipole.tiny.job import build_demo_job, build_demo_prompts
    from dipole_trainer.spec import TrainSpec

    kind, staleness = method_of(arm)
    job = {**build_demo_job(steps=steps), "prompts": build_demo_prompts(held_out=False)}
    judged = build_demo_prompts(held_out=False)[:96] if tuning else build_demo_prompts(held_out=True)
    job["evaluation"] = {"prompts": judged, "images_per_prompt": 2 if tuning else 4, "seed": 77 if tuning else 1234}
    own = {**SIDES.get("drpo" if kind == "random" else kind, {}), **chosen["own"]}
    job["method"] = {"type": kind, kind: own}
    job["optimizer"] = {**job["optimizer"], "lr": chosen["lr"]}
    return TrainSpec.model_validate({**job, "seed": seed, "max_staleness": staleness})


def run(arm: str, seed: int, steps: int, chosen: dict[str, Any], base: str | None, tuning: bool) -> dict[str, Any]:
    """Train one arm with one seed; every held-out prompt's scores of the base and of the trained model.

    `base` is the base's evaluation, which is the same for all; where None it is made.
    """
    import torch

    from dipole_trainer.ranking.in_process import InProcessRanker
    from dipole_trainer.training import session

    torch.set_num_threads(1)
    spec = spec_for(arm, seed, steps, chosen, tuning=tuning)
    rank = InProcessRanker(scorers(), spec.rewards, threads=1)
    events: list[dict[str, Any]] = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if base is not None:
            (work / "evaluation").mkdir()
            shutil.copy(base, work / "evaluation/step-0.json")
        session.run_session(
            spec, job_id="bench", workdir=work, models_dir=work, ranker=rank, control=lambda: "run",
            on_event=lambda kind, data: events.append({"type": kind, **data}),
        )  # fmt: skip
        scored = {step: results.read_results(work / f"evaluation/step-{step}.json") for step in (0, steps)}
    rank.close()
    final = next(event for event in reversed(events) if event["type"] == "evaluation")
    names = ("shapes.strict", "shapes.graded", "colourfulness")
    means = {step: {name: _means(rows, name) for name in names} for step, rows in scored.items()}
    return {
        "arm": arm, "seed": seed, "chosen": chosen, "cpu_s": time.process_time() - began,
        "base": means[0], "tuned": means[steps], "tags": [row.tag for row in scored[0]],
        "diversity_ratio": final["diversity_ratio"],
        "train": [event["rewards"].get("shapes") for event in events if event["type"] == "step"],
    }  # fmt: skip


def _means(rows: Any, name: str) -> list[float]:
    from dipole_trainer.evaluation import statistics

    return statistics.mean_score_per_prompt(rows, name)


def scorers() -> dict[str, Any]:
    """The two embedded rewards, in this process."""
    from dipole_rewards.rewards.colourfulness import Colourfulness
    from dipole_rewards.rewards.shapes import Shapes
    from dipole_trainer.ranking.groups import RewardResult

    def of(plugin: Any) -> Any:
        def score(prompt: str, images: Any, metadata: Any) -> RewardResult:
            found = plugin.score(prompt=prompt, images=list(images), metadata=metadata)
            parts = {
                key: tuple(found.sub_scores[k][key] for k in range(len(images)))
                for key in (found.sub_scores or [{}])[0]
            }
            return RewardResult(scores=tuple(found.scores), sub_scores=parts)

        return score

    return {"shapes": of(Shapes()), "colourfulness": of(Colourfulness())}


def base_evaluation(target: Path, *, tuning: bool) -> str:
    """Evaluate the base once, for all."""
    from dipole_trainer import features, generators
    from dipole_trainer.evaluation import scoring, statistics
    from dipole_trainer.ranking.in_process import InProcessRanker

    spec = spec_for("sft", 0, 2, {"lr": 1e-4, "own": {}}, tuning=tuning)
    generator = generators.build_generator(spec, models_dir=target)
    phi = features.build_features(spec.features, generator, models_dir=target)
    rank = InProcessRanker(scorers(), spec.rewards, threads=1)
    scored, _ = scoring.score_prompts(spec.evaluation, generator, phi, rank, step=0, job_id="base")
    rank.close()
    path = target / job_layout.evaluation_file(0)
    return str(results.write_results(path, 0, scored, statistics.summarize_scores(scored, None)))


def everything(tasks: Iterable[tuple[Any, ...]], processes: int) -> list[dict[str, Any]]:
    """Run all, telling each as it ends; those that diverged are told and left out."""
    results = []
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(run, *task): task for task in tasks}
        for future in as_completed(futures):
            try:
                results.append(last := future.result())
            except (
                FloatingPointError,
                RuntimeError,
                NothingToLearn,
            ) as error:  # a result, of a trial that is not chosen
                arm, seed, _, chosen, *_ = futures[future]
                print(f"{arm:8} seed {seed:4} lr {chosen['lr']:.0e} {chosen['own']!s:32} diverged: {error}", flush=True)
                continue
            strict = last["tuned"]["shapes.strict"]
            print(f"{last['arm']:8} seed {last['seed']:4} lr {last['chosen']['lr']:.0e} {last['chosen']['own']!s:32} "
                  f"strict {sum(strict) / len(strict):.3f} diversity x{last['diversity_ratio']:.2f} "
                  f"{last['cpu_s']:.0f} CPU s", flush=True)  # fmt: skip
    return results


# ---- figures --------------------------------------------------------------------------------------------------------


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Per arm: each score, its difference to the base and DrPO's lead over it with intervals, and macro averages."""
    import measuring
    import numpy as np

    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in results)]
    runs = {arm: sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"]) for arm in arms}
    table: dict[str, Any] = {"base": {name: float(np.nanmean(v)) for name, v in results[0]["base"].items()}}
    for arm in arms:
        table[arm] = {name: float(np.mean([r[name] for r in runs[arm]])) for name in ("diversity_ratio", "cpu_s")}
        table[arm]["chosen"] = runs[arm][0]["chosen"]
        for name in results[0]["base"]:
            tuned = np.array([r["tuned"][name] for r in runs[arm]])
            base = np.array([r["base"][name] for r in runs[arm]])
            entry = {"mean": float(tuned.mean()), "by_seed": tuned.mean(1).round(4).tolist(),
                     "minus base": measuring.interval(tuned - base)}  # fmt: skip
            if arm != "drpo" and "drpo" in runs and len(runs["drpo"]) == len(runs[arm]):
                ahead = np.array([r["tuned"][name] for r in runs["drpo"]])
                entry["drpo minus this"] = measuring.interval(ahead - tuned)
                entry["drpo minus this, over seeds"] = _student(ahead.mean(1) - tuned.mean(1))
                entry["ratio drpo / this"] = float(ahead.mean() / max(tuned.mean(), 1e-9))
            table[arm][name] = entry
        table[arm]["strict by category"] = by_category = _by_category(runs[arm])
        table[arm]["macro strict"] = float(np.mean(list(by_category.values())))
    table["base"]["strict by category"] = _by_category(results[:1], "base")
    return table


def _student(differences: Any) -> tuple[float, float]:
    """Mean of one value a seed, and half the width of Student's 95 % interval."""
    from scipy import stats

    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean()), float(half)


def _by_category(runs: list[dict[str, Any]], which: str = "tuned") -> dict[str, float]:
    import numpy as np

    tags = np.array(runs[0]["tags"])
    strict = np.array([r[which]["shapes.strict"] for r in runs])
    return {tag: round(float(strict[:, tags == tag].mean()), 4) for tag in sorted(set(tags))}


def plot(table: dict[str, Any], target: Path) -> None:
    """Bars of the strict score by arm, with the interval of the gain over the base, and each seed as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {
        "drpo": "DrPO", "random": "random\nranking", "dpo": "DPO", "grpo": "GRPO", "pso": "PSO", "sft": "best-of-K",
        "drpo-1": "DrPO,\n1 stale", "drpo-2": "DrPO,\n2 stale",
    }  # fmt: skip
    arms = [arm for arm in ARMS if arm in table]
    base = table["base"]["shapes.strict"]
    figure, axis = pyplot.subplots(figsize=(8.6, 3.6), constrained_layout=True)
    for x, arm in enumerate(arms):
        entry = table[arm]["shapes.strict"]
        mean, low, high = entry["minus base"]
        colour = "#1b7f5c" if arm.startswith("drpo") else "#8a93a6"
        axis.bar(x, entry["mean"], color=colour, alpha=0.85 if "-" not in arm else 0.45)
        axis.errorbar(x, base + mean, yerr=[[mean - low], [high - mean]], color="black", capsize=4, lw=1.2)
        axis.plot([x] * len(entry["by_seed"]), entry["by_seed"], ".", color="black", ms=3, alpha=0.5)
        axis.text(x, 0.03, f"{entry['mean']:.2f}", ha="center", color="white", fontweight="bold")
    axis.axhline(base, color="black", lw=1, ls="--")
    axis.text(len(arms) - 0.45, base + 0.012, "base", va="bottom")
    axis.set_xticks(range(len(arms)), [names[arm] for arm in arms])
    axis.set_ylabel("held-out prompts strictly right")
    axis.set_xlim(-0.6, len(arms) + 0.1)
    axis.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def tell(table: dict[str, Any]) -> None:
    print(f"\n{'arm':8} {'strict':>7} {'macro':>6} {'minus base, 95 %':>26} {'DrPO minus this, 95 %':>26} {'ratio':>6} "
          f"{'colourf.':>9} {'diversity':>9}")  # fmt: skip
    for arm in ("base", *(arm for arm in ARMS if arm in table)):
        if arm == "base":
            print(f"{arm:8} {table[arm]['shapes.strict']:7.3f} {'':67} {table[arm]['colourfulness']:9.3f}")
            continue
        strict = table[arm]["shapes.strict"]
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*strict["minus base"])
        lead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*strict["drpo minus this"]) if "drpo minus this" in strict else ""
        ratio = f"{strict['ratio drpo / this']:.2f}" if lead else ""
        print(f"{arm:8} {strict['mean']:7.3f} {table[arm]['macro strict']:6.3f} {gain:>26} {lead:>26} {ratio:>6} "
              f"{table[arm]['colourfulness']['mean']:9.3f} {table[arm]['diversity_ratio']:9.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="choose each method's settings; writes them down")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = base_evaluation(Path(folder), tuning=args.tune)
        if args.tune:
            kinds = [arm for arm in args.arms.split(",") if arm in TUNED]
            tasks = [(kind, TUNING_SEED, args.steps, trial, base, True) for kind in kinds for trial in TRIALS[kind]]
            return choose(everything(tasks, args.processes))
        chosen = json.loads(SETTINGS.read_text())["chosen"]
        tasks = [
            (arm, seed, args.steps, chosen["drpo" if method_of(arm)[0] == "random" else method_of(arm)[0]], base, False)
            for seed in range(args.seeds)
            for arm in args.arms.split(",")
        ]
        results = everything(tasks, args.processes)
    table = report(results)
    tell(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"steps": args.steps, "table": table, "runs": results}))
    if args.plot:
        plot(table, args.plot)


def choose(results: list[dict[str, Any]]) -> None:
    """The best trial of each method by the strict score, written down beside all the others."""
    known = json.loads(SETTINGS.read_text()) if SETTINGS.is_file() else {"chosen": {}, "trials": {}}
    for kind in {r["arm"] for r in results}:
        mine = [r for r in results if r["arm"] == kind]
        scored = [(sum(r["tuned"]["shapes.strict"]) / len(r["tuned"]["shapes.strict"]), r["chosen"]) for r in mine]
        scored.sort(key=lambda each: -each[0])
        known["chosen"][kind] = scored[0][1]
        known["trials"][kind] = [{"strict": round(value, 4), **chosen} for value, chosen in scored]
    SETTINGS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"written: {SETTINGS}")


if __name__ == "__main__":
    main()
