"""How alignment.py finds an arm's settings: a walk over a grid without edges, by the same rule for every arm.

A point of the grid counts steps of the learning rate's ladder and of the arm's own knob's. The walk begins at (0, 0)
and tries the neighbours of the best point with the first seed until all of them are known; the two best are then tried
with the other seeds, and the better of them by the mean over all seeds is the choice, once its neighbours are known
too. So the choice is never at an edge of what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Point = tuple[int, int]  # steps of the rate, steps of the knob
Scores = Mapping[Point, Mapping[int, float]]  # by seed; -inf where a trial diverged

FINALISTS = 2


def wanted_trials(scores: Scores, seeds: Sequence[int], *, has_knob: bool) -> list[tuple[Point, int]]:
    """The trials to run next, none when the choice is made."""
    first = seeds[0]
    known = [point for point in scores if first in scores[point]]
    if not known:
        return [((0, 0), first)]
    finalists = sorted(known, key=lambda point: (-scores[point][first], _distance(point)))[:FINALISTS]
    if unknown := [each for each in neighbours(finalists[0], has_knob=has_knob) if each not in known]:
        return [(point, first) for point in unknown]
    if untried := [(point, seed) for point in finalists for seed in seeds if seed not in scores[point]]:
        return untried
    chosen = choose_point(scores, seeds)
    return [(point, first) for point in neighbours(chosen, has_knob=has_knob) if point not in known]


def choose_point(scores: Scores, seeds: Sequence[int]) -> Point:
    """The best by the mean over all seeds, of the points that were tried with all; of equals the nearest to (0, 0)."""
    complete = [point for point in scores if all(seed in scores[point] for seed in seeds)]
    return min(complete, key=lambda point: (-mean_score(scores[point]), _distance(point)))


def mean_score(by_seed: Mapping[int, float]) -> float:
    return sum(by_seed.values()) / len(by_seed)


def neighbours(point: Point, *, has_knob: bool) -> list[Point]:
    rate, knob = point
    beside = [(rate - 1, knob), (rate + 1, knob)]
    return beside + ([(rate, knob - 1), (rate, knob + 1)] if has_knob else [])


def _distance(point: Point) -> int:
    return abs(point[0]) + abs(point[1])
