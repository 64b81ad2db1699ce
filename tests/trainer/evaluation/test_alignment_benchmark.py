"""benchmarks/alignment.py's fairness: the walk that tunes every arm, and prompts that nobody has looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dipole.tiny.job import build_demo_prompts
from dipole.tiny.world import TAGS, describe_scene

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
SEEDS = (5, 6)
Landscape = Callable[[tuple[int, int], int], float]


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("arms", monkeypatch)


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("worlds", monkeypatch)


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("tuning", monkeypatch)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks/, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for each in ("arms", "tuning", "worlds", "words"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return __import__(name)


def walk(tuning: ModuleType, score: Landscape, *, has_knob: bool) -> dict[tuple[int, int], dict[int, float]]:
    scores: dict[tuple[int, int], dict[int, float]] = {}
    while wanted := tuning.wanted_trials(scores, SEEDS, has_knob=has_knob):
        for point, seed in wanted:
            assert seed not in scores.setdefault(point, {})
            scores[point][seed] = score(point, seed)
    return scores


LANDSCAPES: dict[str, Landscape] = {
    "a hill far away": lambda point, seed: -abs(point[0] - 4) - 2 * abs(point[1] + 3) + 0.1 * (seed == 6),
    "a cliff beside the top": lambda point, seed: float("-inf") if point[0] > 1 else point[0] - abs(point[1]),
    "seeds that disagree": lambda point, seed: -abs(point[0] - (seed - 6)) - abs(point[1]),
    "flat": lambda point, seed: 0.5,
    "no gain by any rate": lambda point, seed: 0.5 - max(0, point[0] + 2) ** 2 - 0.001 * (point[1] != 0),
}


@pytest.mark.parametrize("has_knob", [True, False])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_choice_is_never_at_an_edge_of_what_was_tried(tuning: ModuleType, name: str, has_knob: bool) -> None:
    """Its neighbours were tried, and it with every seed, as was whatever is better by the first seed. The walk ends."""
    scores = walk(tuning, LANDSCAPES[name], has_knob=has_knob)
    chosen = tuning.choose_point(scores, SEEDS)
    beside = tuning.neighbours(chosen, has_knob=has_knob)
    assert set(beside) <= scores.keys()
    complete = [point for point in scores if len(scores[point]) == len(SEEDS)]
    assert chosen in complete
    assert len(complete) >= tuning.FINALISTS
    second_best = sorted(scores[point][SEEDS[0]] for point in scores)[-2]
    assert all(scores[point][SEEDS[0]] <= second_best for point in scores if point not in complete)


def test_a_hill_is_climbed(tuning: ModuleType) -> None:
    scores = walk(tuning, LANDSCAPES["a hill far away"], has_knob=True)
    assert tuning.choose_point(scores, SEEDS) == (4, -3)


def test_the_blind_split_is_of_prompts_that_nobody_has_looked_at(worlds: ModuleType) -> None:
    """Held-out prompts are none of the demo's held-out ones or of those that were tuned on before, and no scene is on
    both sides; every prompt of the world is on one; every category is held out; tuning is on training prompts.
    """
    split = worlds.WORLDS["shapes"].draw_split()
    text = lambda lines: {line["prompt"] for line in lines}  # noqa: E731
    scenes = lambda lines: {str(describe_scene(line["metadata"])) for line in lines}  # noqa: E731
    before = build_demo_prompts(held_out=True) + build_demo_prompts(held_out=False)[:96]
    assert not scenes(split.held_out) & scenes(before)
    assert not scenes(split.held_out) & scenes(split.train)
    assert len(text(split.held_out)) + len(text(split.train)) == 532
    assert len(split.held_out) >= 128
    assert {line["metadata"]["tag"] for line in split.held_out} == set(TAGS)
    assert text(split.tuning) < text(split.train)


@pytest.mark.parametrize("name", ["shapes", "words"])
def test_every_arm_trains_on_one_budget(arms: ModuleType, worlds: ModuleType, name: str) -> None:
    """The same prompts, candidates and updates for all; the control and the other encoders have DrPO's settings."""
    world = worlds.WORLDS[name]
    prompts = world.draw_split().train
    specs = {
        name: arms.build_spec(world, arm, arms.settings_at(arm, (1, 1)), 3, 30, prompts)
        for name, arm in arms.arms_of(world).items()
    }
    own = {"method", "features", "max_staleness", "reward_decoder"}
    budgets = [spec.model_dump(exclude=own) for spec in specs.values()]
    assert all(budget == budgets[0] for budget in budgets)
    assert specs["random"].method.random == specs["drpo-101"].method.drpo == specs["drpo-103"].method.drpo
    assert specs["random"].features == specs["drpo-101"].features


def test_no_word_is_on_both_sides_and_all_are_read(worlds: ModuleType) -> None:
    """Held-out words are no training words, 128 at least; the reader reads each picture as what was drawn, and as
    nothing else; half right is graded and not strict.
    """
    import words  # of benchmarks/, as `worlds` has found it

    split = worlds.WORLDS["words"].draw_split()
    asked = lambda lines: {(line["metadata"]["letters"], line["metadata"].get("color")) for line in lines}  # noqa: E731
    assert not asked(split.train) & asked(split.held_out)
    assert len(split.held_out) >= 128
    for index, line in enumerate(split.held_out):
        letters, colour = line["metadata"]["letters"], line["metadata"].get("color")
        place = {"x": 29 + index % 7, "y": 25 + index % 15, "size": 0.92 + 0.02 * (index % 9)}
        seen = words.read_letters(words.render_words(words.batch_of(letters, colour or "cyan", **place))[0])
        strict, graded = words.score_letters(seen, letters, colour)
        assert strict == 1
        assert graded > 0.8
        assert words.score_letters(seen, letters[::-1] + "a", colour)[0] == 0
    seen = words.read_letters(words.render_words(words.batch_of("at", "red"))[0])
    assert words.score_letters(seen, "ax", None) == (0.0, pytest.approx(0.5, abs=0.05))
    assert words.score_letters(seen, "at", "blue")[0] == 0
