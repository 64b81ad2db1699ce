"""How near the recovered order comes to the truth when a third of the raters are random, with weights and without.

    python benchmarks/ratings.py
    python benchmarks/ratings.py --raters 3 5 9 --tasks 40 --noise 1.0 --json out/ratings.json

A pool of raters ranks the same tasks of K images, whose true quality is standard normal. An honest rater orders by
that quality plus noise of standard deviation `--noise`, and ties images that look alike; one rater in three (rounded)
gives a random order, in as much time as the others take, so that dwell gives nobody away. One task in twenty is
repeated, and as many are gold, whose images differ clearly. A pool's weights come from `rate_raters` on its answers.

Printed for each number of raters: mean Kendall τ-b with the truth over all tasks, unweighted, weighted, and of the
honest raters alone, which no weight can beat by much; the gain by weights with a 95 % interval over pools; the share of
tasks that aggregation gives scores for, unweighted and weighted; mean weights of honest and of random raters.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import t as student

from dipole_ratings.aggregation.agreement import correlate_orders, is_same_answer
from dipole_ratings.aggregation.answers import Answer, count_wins
from dipole_ratings.aggregation.raters import RaterChecks, rate_raters
from dipole_ratings.aggregation.scores import aggregate, fit_scores

Vector = NDArray[np.float64]
LOOK_ALIKE = 0.2  # images closer than this in a rater's eyes share a tier
CHECKED_SHARE = 0.05  # of tasks that are repeated, and of gold beside them
SECONDS_PER_IMAGE = 2.5


def rank(rng: Generator, rater: str, quality: Vector, noise: float) -> Answer:
    """An honest rater's tiers of images with this quality (K,)."""
    seen = quality + noise * rng.standard_normal(len(quality))
    tiers: list[list[int]] = []
    for image in np.argsort(-seen):
        if tiers and seen[tiers[-1][-1]] - seen[image] < LOOK_ALIKE:
            tiers[-1].append(int(image))
        else:
            tiers.append([int(image)])
    return Answer(rater, tuple(map(tuple, tiers)))


def rank_randomly(rng: Generator, rater: str, images: int) -> Answer:
    return Answer(rater, tuple((int(image),) for image in rng.permutation(images)))


def simulate_pool(
    rng: Generator, raters: int, randoms: int, tasks: int, images: int, noise: float
) -> tuple[Vector, list[list[Answer]], dict[str, RaterChecks]]:
    """True quality (tasks, K), each task's answers, and the checks; the random raters' names begin with "random"."""
    truth = rng.standard_normal((tasks, images))
    names = [f"{'random' if number < randoms else 'honest'} {number}" for number in range(raters)]

    def answer(rater: str, quality: Vector) -> Answer:
        if rater.startswith("random"):
            return rank_randomly(rng, rater, images)
        return rank(rng, rater, quality, noise)

    answers = [[answer(rater, quality) for rater in names] for quality in truth]
    checked = max(1, round(CHECKED_SHARE * tasks))
    clear = 2.0 * np.arange(images)
    known = Answer("gold", tuple((image,) for image in reversed(range(images))))
    checks = {
        rater: RaterChecks(
            gold_right=sum(is_same_answer(answer(rater, clear), known) for _ in range(checked)),
            gold_seen=checked,
            repeats_agreed=sum(is_same_answer(answer(rater, truth[n]), answers[n][place]) for n in range(checked)),
            repeats_seen=checked,
            dwell=tuple((images, float(each)) for each in rng.gamma(4, images * SECONDS_PER_IMAGE / 4, tasks)),
        )
        for place, rater in enumerate(names)
    }
    return truth, answers, checks


def measure_recovery(
    truth: Vector, tasks: Sequence[Sequence[Answer]], weights: Mapping[str, float] | None = None
) -> float:
    """Mean τ-b of the fitted scores with the truth (tasks, K); an order that says nothing counts as 0."""
    taus = [
        correlate_orders(fit_scores(count_wins(answers, len(quality), weights)), quality)
        for quality, answers in zip(truth, tasks, strict=True)
    ]
    return float(np.mean([tau or 0.0 for tau in taus]))


def measure_pool(rng: Generator, raters: int, tasks: int, images: int, noise: float) -> dict[str, float]:
    truth, answers, checks = simulate_pool(rng, raters, round(raters / 3), tasks, images, noise)
    weights = {rater: quality.weight for rater, quality in rate_raters(answers, checks).items()}
    honest = [[answer for answer in task if answer.rater.startswith("honest")] for task in answers]
    return {
        "unweighted": measure_recovery(truth, answers),
        "weighted": measure_recovery(truth, answers, weights),
        "honest alone": measure_recovery(truth, honest),
        "scored, unweighted": float(np.mean([aggregate(task, images).scores is not None for task in answers])),
        "scored, weighted": float(np.mean([aggregate(task, images, weights).scores is not None for task in answers])),
        "weight, honest": float(np.mean([weight for rater, weight in weights.items() if rater.startswith("honest")])),
        "weight, random": float(np.mean([weight for rater, weight in weights.items() if rater.startswith("random")])),
    }


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t)."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), error * float(student.ppf(0.975, len(values) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, nargs="+", default=[3, 5, 9])
    parser.add_argument("--pools", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    print("raters  unweighted  weighted  gain (95 %)      honest alone  scored     weight honest, random")
    for raters in args.raters:
        pools = [
            measure_pool(np.random.default_rng([args.seed, raters, n]), raters, args.tasks, args.images, args.noise)
            for n in range(args.pools)
        ]
        mean = {name: float(np.mean([pool[name] for pool in pools])) for name in pools[0]}
        gain, half = compute_interval([pool["weighted"] - pool["unweighted"] for pool in pools])
        found.append({"raters": raters, "gain": gain, "half_interval": half, **mean})
        print(
            f"{raters:6}  {mean['unweighted']:10.3f}  {mean['weighted']:8.3f}  {gain:+.3f} ± {half:.3f}"
            f"   {mean['honest alone']:12.3f}  {mean['scored, unweighted']:.2f} {mean['scored, weighted']:.2f}"
            f"  {mean['weight, honest']:.2f}, {mean['weight, random']:.2f}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings, "found": found}, indent=1))


if __name__ == "__main__":
    main()
