"""Which method aligns the generator, in which space, and is it the ranking that does it?

    python benchmarks/alignment.py --tune --jobs 2     finds every arm's settings; writes alignment-settings.json
    python benchmarks/alignment.py --jobs 2            5 seeds of every arm on prompts that nobody has looked at
    python benchmarks/alignment.py --arms drpo-101,random --seeds 2 --json out/alignment.json --plot out/alignment.png

Every arm (arms.py) sees the same prompts, seeds of noises, candidates per update and number of updates, on the tiny
world. `random` is DrPO on shuffled scores, because any drift can help an undertrained base. DrPO drifts in the features
of an encoder that saw no label; three encoders of other seeds stand for one. The labelled encoder is an upper line, and
`drpo-published` has the published radii and no masking. `drpo-1-stale` trains on rankings that are a window old.

Tuning is the same walk for all (tuning.py), over the learning rate and one knob of the method's own, on two seeds
that the result does not use, judged by the strict score on training prompts with other noises. The control and the
other encoders take DrPO's settings. The final figure is a blind repetition: another split of prompts
(`arms.draw_split`) and other noises than those that were in view while the encoder's recipe was found.

`--world words` is the same in another world (words.py), so that the result does not hang on one; there the held-out
prompts are of words that the base never saw.

Every run that ends is a line of alignment-runs.jsonl, and is not done again: what was interrupted goes on where it
stopped.

All arms are evaluated on the same held-out prompts and noises, by a reward that they were trained for and one that they
were not (`colourfulness`); diversity is the mean distance of a prompt's images in label-free features.
Intervals are over prompts and seeds: both are resampled, all seeds sharing a draw's prompts (bootstrap, 4000 draws).
Student's interval over the seeds alone stands beside it. `strict` pools the prompts, `macro` averages the categories.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import measuring
import numpy as np
from arms import ARMS, HEADLINE, STEPS, TUNED, arms_of, build_spec, settings_at
from tuning import Point, choose_point, mean_score, wanted_trials
from worlds import HELD_OUT_REWARD, WORLDS, World

from dipole.errors import NothingToLearn

HERE = Path(__file__).parent
ENCODERS = HERE / "encoders"  # by the names that arms give their weights
TUNING_SEEDS = (1000, 1001)
FINAL_SEEDS = (10, 11, 12, 13, 14)
BASE = "base"  # the arm that trains nothing
Stage = Literal["tuning", "final"]
# the seed of the noises, and how many of them a prompt has
NOISES: dict[Stage, tuple[int, int]] = {"tuning": (20261130, 2), "final": (20261201, 4)}


@dataclass(frozen=True)
class Task:
    """One run: what of it, as JSON, names it among those that are done."""

    arm: str
    seed: int
    stage: Stage
    steps: int
    settings: dict[str, Any]

    def key(self, world: World) -> str:
        arm = arms_of(world).get(self.arm)
        return json.dumps(asdict(self) | ({"features": dict(arm.features), "own": dict(arm.own)} if arm else {}))


class RunsFile:
    """Lines of JSON, one a run that ended, well or not; appended as they end by one process."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a process that was killed may have left half a line
        if whole != text:
            path.write_text(whole)
        self.done = {line["key"]: line for line in map(json.loads, whole.splitlines())}

    def append(self, task: Task, found: dict[str, Any]) -> None:
        line = {"key": task.key(self.world), **asdict(task), "commit": read_commit(), **found}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.done[line["key"]] = line

    def find(self, task: Task) -> dict[str, Any] | None:
        return self.done.get(task.key(self.world))


def read_commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


# ---- one run --------------------------------------------------------------------------------------------------------


def run(task: Task, world: World) -> dict[str, Any]:
    """Train the task's arm and score it: every prompt's means, and seconds of processor. A run that diverges is a
    result too, of a setting that is not chosen.
    """
    import torch

    from dipole_trainer import generators
    from dipole_trainer.checkpoints import resume_state
    from dipole_trainer.ranking.in_process import InProcessRanker
    from dipole_trainer.storage import job_layout
    from dipole_trainer.training import session

    torch.set_num_threads(1)
    split, began, arms = world.draw_split(), time.process_time(), arms_of(world)
    arm = arms.get(task.arm, arms["sft"])
    spec = build_spec(world, arm, task.settings, task.seed, task.steps, split.train)
    rank = InProcessRanker(scorers(world), spec.rewards, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if task.arm != BASE:
            try:
                session.run_session(
                    spec, job_id="bench", workdir=work, models_dir=ENCODERS, ranker=rank, control=lambda: "run",
                    on_event=lambda kind, data: None,
                )  # fmt: skip
            except (FloatingPointError, RuntimeError, NothingToLearn) as error:
                return {"diverged": str(error), "cpu_s": time.process_time() - began}
        trained = time.process_time() - began
        generator = generators.build_generator(spec, models_dir=ENCODERS)
        if task.arm != BASE:
            resume_state.load_checkpoint(work / job_layout.checkpoint_name(task.steps), generator)
    features = world.features_of({"type": "tiny_contrastive"})
    prompts = split.tuning if task.stage == "tuning" else split.held_out
    found = evaluate(generator, rank, prompts, task.stage, features, names_of(world))
    rank.close()
    return {**found, "train_cpu_s": trained, "cpu_s": time.process_time() - began}


def names_of(world: World) -> tuple[str, str, str]:
    """What is reported: strict and graded scores of the reward that is trained for, and the one that is not."""
    return f"{world.reward}.strict", f"{world.reward}.graded", HELD_OUT_REWARD


def evaluate(
    generator: Any,
    rank: Any,
    prompts: list[dict[str, Any]],
    stage: Stage,
    space: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, Any]:
    """Each prompt's mean scores of those names and its diversity in a space, in an order that all arms share."""
    from dipole_trainer import features
    from dipole_trainer.evaluation import scoring, statistics
    from dipole_trainer.spec import EvalSpec, FeaturesSpec

    seed, images = NOISES[stage]
    spec = EvalSpec.model_validate({"prompts": prompts, "images_per_prompt": images, "seed": seed})
    phi = features.build_features(FeaturesSpec.model_validate(space), generator, models_dir=ENCODERS)
    scored, _ = scoring.score_prompts(spec, generator, phi, rank, step=0, job_id="bench")
    scores = {name: _rounded(statistics.mean_score_per_prompt(scored, name)) for name in names}
    return {"scores": scores, "diversity": _rounded([row.diversity or 0.0 for row in scored])}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def scorers(world: World) -> dict[str, Any]:
    """The world's reward and the one that is watched, in this process."""
    from dipole_rewards.rewards.colourfulness import Colourfulness
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

    return {world.reward: of(world.load_reward()), HELD_OUT_REWARD: of(Colourfulness())}


def run_all(tasks: Sequence[Task], runs: RunsFile, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """The lines of all tasks, in their order; those that are not there yet are run, and told as they end."""
    futures = {pool.submit(run, task, runs.world): task for task in tasks if runs.find(task) is None}
    for future in as_completed(futures):
        task, found = futures[future], future.result()
        runs.append(task, found)
        what = (
            f"diverged: {found['diverged']}" if "diverged" in found else f"strict {strict_score(found, runs.world):.3f}"
        )
        settings = json.dumps(task.settings)
        print(f"{task.arm:15} seed {task.seed:4} {settings} {what} {found['cpu_s']:.0f} CPU s", flush=True)
    return [line for line in map(runs.find, tasks) if line is not None]


def strict_score(found: dict[str, Any], world: World) -> float:
    """The mean strict score of a run; minus infinity where it diverged."""
    return -math.inf if "diverged" in found else float(np.nanmean(found["scores"][names_of(world)[0]]))


# ---- tuning ---------------------------------------------------------------------------------------------------------


def tune(names: Sequence[str], steps: int, runs: RunsFile, settings: Path, pool: ProcessPoolExecutor) -> None:
    """Walk all arms at once, as far as each is; each choice is written down as soon as it is made."""
    scores: dict[str, dict[Point, dict[int, float]]] = {name: {} for name in names}
    walking = list(names)
    while walking:
        wanted = {
            name: wanted_trials(scores[name], TUNING_SEEDS, has_knob=ARMS[name].knob is not None) for name in walking
        }
        for name in [name for name in walking if not wanted[name]]:
            write_choice(name, scores[name], settings)
        walking = [name for name in walking if wanted[name]]
        trials = [(name, point, seed) for name in walking for point, seed in wanted[name]]
        tasks = [Task(name, seed, "tuning", steps, settings_at(ARMS[name], point)) for name, point, seed in trials]
        for (name, point, seed), found in zip(trials, run_all(tasks, runs, pool), strict=True):
            scores[name].setdefault(point, {})[seed] = strict_score(found, runs.world)


def write_choice(name: str, scores: dict[Point, dict[int, float]], target: Path) -> None:
    """The choice beside all that was tried, best first."""
    known = json.loads(target.read_text()) if target.is_file() else {}
    chosen = choose_point(scores, TUNING_SEEDS)
    order = sorted(scores, key=lambda point: (point != chosen, -mean_score(scores[point])))
    tried = [
        {
            **settings_at(ARMS[name], point),
            "strict": [None if score == -math.inf else round(score, 4) for score in scores[point].values()],
        }
        for point in order
    ]
    known[name] = {"chosen": settings_at(ARMS[name], chosen), "tried": tried}
    target.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{name}: {json.dumps(known[name]['chosen'])} of {len(tried)} settings, none better beside it", flush=True)


# ---- figures --------------------------------------------------------------------------------------------------------


def report(world: World, base: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Per arm, and for DrPO as the mean over encoders: each score, its difference to the base, and DrPO's lead."""
    names, tags = names_of(world), np.array([line["metadata"]["tag"] for line in world.draw_split().held_out])
    by_arm = {name: [line for line in results if line["arm"] == name] for name in ARMS}
    by_arm = {name: sorted(lines, key=lambda line: line["seed"]) for name, lines in by_arm.items() if lines}
    stacked = {
        name: {key: np.array([line["scores"][key] for line in lines]) for key in names}
        for name, lines in by_arm.items()
    }
    diversity = {name: np.array([line["diversity"] for line in lines]) for name, lines in by_arm.items()}
    if set(HEADLINE) <= by_arm.keys():
        stacked = {"drpo": {key: np.mean([stacked[name][key] for name in HEADLINE], 0) for key in names}, **stacked}
        diversity["drpo"] = np.mean([diversity[name] for name in HEADLINE], 0)
        by_arm["drpo"] = [line for name in HEADLINE for line in by_arm[name]]
    table: dict[str, Any] = {
        "base": {"title": "base", **{key: {"mean": float(np.nanmean(base["scores"][key]))} for key in names}}
    }
    table["base"] |= categories(np.array([base["scores"][names[0]]]), tags)
    for name, scores in stacked.items():
        lines = by_arm[name]
        table[name] = {
            "title": "DrPO" if name == "drpo" else ARMS[name].title,
            "settings": lines[0]["settings"],
            "diversity_ratio": float(diversity[name].mean() / np.mean(base["diversity"])),
            "train_cpu_s": float(np.mean([line["train_cpu_s"] for line in lines])),
            **categories(scores[names[0]], tags),
        }
        for key, values in scores.items():
            entry = {"mean": float(values.mean()), "by_seed": values.mean(1).round(4).tolist()}
            entry["minus base"] = measuring.interval(values - np.array(base["scores"][key]))
            if name != "drpo" and "drpo" in stacked and len(values) == len(stacked["drpo"][key]):
                ahead = stacked["drpo"][key]
                entry["drpo minus this"] = measuring.interval(ahead - values)
                entry["drpo minus this, over seeds"] = _student(ahead.mean(1) - values.mean(1))
            table[name][key] = entry
    return table


def categories(strict: Any, tags: Any) -> dict[str, Any]:
    """Of strict scores (seeds, prompts): by category, and their plain mean."""
    found = {str(tag): round(float(strict[:, tags == tag].mean()), 4) for tag in sorted(set(tags))}
    return {"strict by category": found, "macro strict": float(np.mean(list(found.values())))}


def _student(differences: Any) -> tuple[float, float]:
    """Mean of one value a seed, and half the width of Student's 95 % interval."""
    from scipy import stats

    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean()), float(half)


def plot(table: dict[str, Any], strict: str, target: Path) -> None:
    """Bars of the strict score by arm, with the interval of the gain over the base, and each seed as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [arm for arm in table if arm not in ("base", *HEADLINE)]
    base = table["base"][strict]["mean"]
    figure, axis = pyplot.subplots(figsize=(8.6, 0.8 + 0.34 * len(arms)), constrained_layout=True)
    for y, arm in enumerate(arms):
        entry = table[arm][strict]
        mean, low, high = entry["minus base"]
        axis.barh(y, entry["mean"], color="#1b7f5c" if arm == "drpo" else "#8a93a6", alpha=0.85)
        axis.errorbar(base + mean, y, xerr=[[mean - low], [high - mean]], color="black", capsize=3, lw=1.2)
        axis.plot(entry["by_seed"], [y] * len(entry["by_seed"]), ".", color="black", ms=3, alpha=0.5)
        axis.text(0.01, y, f"{entry['mean']:.2f}", va="center", color="white", fontweight="bold")
    axis.axvline(base, color="black", lw=1, ls="--")
    axis.text(base, -0.75, " base", va="center")
    axis.set_yticks(range(len(arms)), [table[arm]["title"] for arm in arms])
    axis.set_xlabel("held-out prompts strictly right")
    axis.set_ylim(len(arms) - 0.5, -1.1)
    axis.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def tell(table: dict[str, Any], world: World) -> None:
    strict, graded, held_out = names_of(world)
    print(f"\n{'arm':15} {'strict':>6} {'macro':>6} {'graded':>6} {'minus base, 95 %':>24} "
          f"{'DrPO minus this, 95 %':>24} {'colourf.':>8} {'diversity':>9} {'CPU s':>6}")  # fmt: skip
    for arm, row in table.items():
        means = f"{row[strict]['mean']:6.3f} {row['macro strict']:6.3f} {row[graded]['mean']:6.3f}"
        if arm == "base":
            print(f"{arm:15} {means} {'':49} {row[held_out]['mean']:8.3f}")
            continue
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[strict]["minus base"])
        lead = row[strict].get("drpo minus this")
        lead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*lead) if lead else ""
        print(f"{arm:15} {means} {gain:>24} {lead:>24} {row[held_out]['mean']:8.3f} "
              f"{row['diversity_ratio']:9.2f} {row['train_cpu_s']:6.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="shapes")
    parser.add_argument("--tune", action="store_true", help="choose each arm's settings; writes them down")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of every run")
    parser.add_argument("--seeds", type=int, default=len(FINAL_SEEDS))
    parser.add_argument("--arms", help="names, separated by commas; all if absent")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    world, suffix = WORLDS[args.world], "" if args.world == "shapes" else f"-{args.world}"
    settings, arms = HERE / f"alignment-settings{suffix}.json", arms_of(world)
    runs = RunsFile(HERE / f"alignment-runs{suffix}.jsonl", world)
    names = args.arms.split(",") if args.arms else list(arms)
    with ProcessPoolExecutor(args.jobs) as pool:
        if args.tune:
            return tune([name for name in names if name in TUNED], args.steps, runs, settings, pool)
        known = json.loads(settings.read_text())
        if untuned := {ARMS[name].settings_of or name for name in names} - known.keys():
            parser.error(f"no settings yet: run --tune --arms {','.join(sorted(untuned))} first")
        chosen = {name: known[ARMS[name].settings_of or name]["chosen"] for name in names}
        tasks = [Task(BASE, 0, "final", args.steps, settings_at(ARMS["sft"], (0, 0)))]
        tasks += [
            Task(name, seed, "final", args.steps, chosen[name]) for seed in FINAL_SEEDS[: args.seeds] for name in names
        ]
        base, *results = run_all(tasks, runs, pool)
    table = report(world, base, [line for line in results if "scores" in line])
    tell(table, world)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"world": args.world, "steps": args.steps, "table": table}, indent=1))
    if args.plot:
        plot(table, names_of(world)[0], args.plot)


if __name__ == "__main__":
    main()
