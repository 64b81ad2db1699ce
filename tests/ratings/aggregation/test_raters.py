"""Weights of raters: lazy ones lose theirs, odd ones keep most, and the order comes nearer to the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dipole_ratings.aggregation.answers import Answer
from dipole_ratings.aggregation.raters import RaterChecks, describe_pool, rate_raters

from .drawn_answers import order

RIGHT_ORDER = (0, 1, 2, 3)
CAREFUL = RaterChecks(8, 8, 8, 8, dwell=((4, 9.0),) * 20)


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """benchmarks/ratings.py, whose simulated raters these tests share."""
    path = Path(__file__).resolve().parents[3] / "benchmarks/ratings.py"
    spec = importlib.util.spec_from_file_location("benchmarks_ratings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agree(*raters: str, tasks: int = 20) -> list[list[Answer]]:
    """Tasks in which all these give the same order."""
    return [[order(rater, *RIGHT_ORDER) for rater in raters] for _ in range(tasks)]


def test_weights_bring_the_order_nearer_to_the_truth(simulation: ModuleType) -> None:
    """A third at random, the rest noisy: τ-b with the truth rises over pools, by an interval that excludes 0."""
    found = [
        simulation.measure_pool(np.random.default_rng([7, n]), raters=6, tasks=24, images=4, noise=0.7)
        for n in range(6)
    ]
    gain, half = simulation.compute_interval([each["weighted"] - each["unweighted"] for each in found])
    assert gain - half > 0
    for each in found:
        assert 0.25 <= each["weight, random"] < each["weight, honest"] <= 1
        assert each["scored, weighted"] >= each["scored, unweighted"]


def test_one_disagreement_does_not_crush_an_honest_rater() -> None:
    """The opposite of everybody, once in the first answer: still most of the weight; always: the floor."""
    odd = order("odd", *reversed(RIGHT_ORDER))
    once = rate_raters([*agree("a", "b", "c"), [*agree("a", "b", "c")[0], odd]])["odd"]
    assert (once.tau, once.compared) == (-1, 1)
    assert once.weight > 0.7
    always = rate_raters([[*task, odd] for task in agree("a", "b", "c")])["odd"]
    assert always.weight == 0.25


def test_an_unusual_taste_keeps_about_half_of_its_weight() -> None:
    """Who agrees with others less than they with one another, and is consistent, stays far above the floor."""
    unusual = order("unusual", 1, 0, 3, 2)  # τ-b with the others 1/3
    checks = {"unusual": RaterChecks(gold_right=2, gold_seen=2, repeats_agreed=2, repeats_seen=2)}
    found = rate_raters([[*task, unusual] for task in agree("a", "b", "c")], checks)
    assert 0.45 < found["unusual"].weight < 0.8
    assert found["a"].weight == 1


def test_a_pool_at_odds_with_itself_accuses_nobody() -> None:
    """Where all orders are random, differences are chance: everybody keeps weight 1."""
    rng = np.random.default_rng(3)
    tasks = [[order(rater, *rng.permutation(4).tolist()) for rater in "abcdef"] for _ in range(60)]
    assert {quality.weight for quality in rate_raters(tasks).values()} == {1.0}


@pytest.mark.parametrize(
    "careless",
    [RaterChecks(gold_seen=8), RaterChecks(repeats_seen=8), RaterChecks(dwell=((4, 0.8),) * 20)],
    ids=["gold", "repeats", "dwell"],
)
def test_each_check_lowers_a_weight_by_itself(careless: RaterChecks) -> None:
    """Whoever always fails one loses half of the weight or more, whoever passes loses none."""
    found = rate_raters(agree("a", "b", "c"), {"a": careless, "b": CAREFUL, "c": CAREFUL})
    assert found["a"].weight < 0.5
    assert found["b"].weight == found["c"].weight == 1


@pytest.mark.parametrize(
    "once",
    [RaterChecks(gold_seen=1), RaterChecks(repeats_seen=1), RaterChecks(dwell=((4, 0.8),))],
    ids=["gold", "repeats", "dwell"],
)
def test_one_failed_check_costs_little(once: RaterChecks) -> None:
    """A slip is not laziness."""
    assert rate_raters(agree("a", "b"), {"a": once, "b": CAREFUL})["a"].weight > 0.7


def test_more_failures_never_raise_a_weight() -> None:
    """Monotone in gold, repeats and dwell, from 1 down, never below the floor."""
    for make in (
        lambda bad: RaterChecks(gold_right=10 - bad, gold_seen=10),
        lambda bad: RaterChecks(repeats_agreed=10 - bad, repeats_seen=10),
        lambda bad: RaterChecks(dwell=((4, 9.0),) * (10 - bad) + ((4, 0.5),) * bad),
    ):
        weights = [rate_raters([], {"a": make(bad), "b": CAREFUL})["a"].weight for bad in range(11)]
        assert weights == sorted(weights, reverse=True)
        assert weights[0] == 1
        assert 0.25 <= weights[-1] < 0.7


def test_a_rater_of_whom_nothing_is_known_has_weight_one() -> None:
    """Alone, new, or only ever of the opinion that none is usable: no figures, full weight."""
    tasks = [[order("alone", 0, 1)], [Answer("picky", none_usable=True), order("other", 0, 1)]]
    found = rate_raters(tasks, {"new": RaterChecks()})
    assert found.keys() == {"alone", "picky", "other", "new"}
    for quality in found.values():
        assert quality.weight == 1
        assert (quality.tau, quality.gold_right, quality.repeats_agreed, quality.hasty) == (None,) * 4
    assert (found["alone"].answers, found["new"].answers) == (1, 0)
    assert rate_raters([]) == {}


def test_the_order_of_tasks_and_answers_does_not_count(simulation: ModuleType) -> None:
    """Weights are the same for tasks and answers in any order."""
    _, tasks, checks = simulation.simulate_pool(np.random.default_rng(5), 5, 2, 20, 4, 0.7)
    before = rate_raters(tasks, checks)
    after = rate_raters([task[::-1] for task in tasks[::-1]], checks)
    assert before.keys() == after.keys()
    for rater, quality in after.items():
        assert quality.weight == pytest.approx(before[rater].weight)


def test_answers_on_subsets_are_compared_where_they_overlap() -> None:
    """A rater's other answers to the task are not the others' opinion; images that nobody else ranked say nothing."""
    task = [order("a", 0, 1, 2), order("a", 2, 3, 4), order("b", 4, 3, 2), order("c", 8, 9)]
    found = rate_raters([task])
    assert (found["a"].compared, found["a"].tau) == (1, -1)
    assert found["c"].tau is None


def test_the_statement_says_how_a_pool_stands() -> None:
    """Raters, answers, alpha, and who counts little, in whole sentences."""
    lazy = [[*task, order("lazy", *reversed(RIGHT_ORDER))] for task in agree("a", "b", "c", tasks=10)]
    pool = describe_pool(lazy, rate_raters(lazy))
    assert (pool.raters, pool.answers, pool.low_weight) == (4, 40, ("lazy",))
    assert pool.alpha is not None
    assert pool.statement == (
        "4 raters gave 40 answers. "
        f"Their agreement is {pool.alpha:.2f} (Krippendorff's alpha: 1 is perfect, 0 is chance). "
        "1 rater counts less than half: lazy."
    )
    alone = describe_pool(agree("a", tasks=1), {})
    assert alone.alpha is None
    assert alone.statement == (
        "1 rater gave 1 answer. How far raters agree is not known: no image has an order by two of them."
    )
