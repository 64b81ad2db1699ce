"""What a spec fills in by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole_trainer.spec import MAX_STEPS, MIN_STEPS, DpoSpec, DrpoSpec, MethodSpec, TrainSpec, choose_steps


@pytest.mark.parametrize("kind", [DrpoSpec, DpoSpec])
def test_the_default_group_has_its_published_sides(kind: type[DrpoSpec | DpoSpec]) -> None:
    """8 and 8 of 24."""
    assert kind().sides(24) == (8, 8)


@given(candidates=st.integers(2, 64), kind=st.sampled_from(["drpo", "dpo", "random", "grpo", "pso", "sft"]))
def test_sides_that_nobody_gave_fit_any_group(candidates: int, kind: Any) -> None:
    """At least one of each, never more than there are candidates; GRPO's anchors are its own setting."""
    settings = MethodSpec(type=kind).settings
    positives, negatives = settings.sides(candidates)
    assert min(positives, negatives) >= 1
    assert positives + negatives <= candidates


@given(candidates=st.integers(2, 64), given_side=st.integers(1, 63), name=st.sampled_from(["positives", "negatives"]))
def test_the_side_that_was_not_given_takes_what_is_left(candidates: int, given_side: int, name: str) -> None:
    """The given one stays as it is; together they fit wherever it leaves one candidate."""
    settings = DrpoSpec.model_validate({name: given_side})
    sides = dict(zip(("positives", "negatives"), settings.sides(candidates), strict=True))
    assert sides[name] == given_side
    if given_side < candidates:
        settings.check_candidates(candidates, field="method.drpo")
    else:
        with pytest.raises(InvalidInput, match=rf"method\.drpo\.{name}" if name == "positives" else "negatives"):
            settings.check_candidates(candidates, field="method.drpo")


def job(prompts: int, **more: Any) -> TrainSpec:
    lines = [{"prompt": f"prompt {index}"} for index in range(prompts)]
    return TrainSpec.model_validate({"prompts": lines, "rewards": [{"name": "r"}], **more})


@pytest.mark.parametrize(
    ("prompts", "more", "steps"),
    [
        (1, {}, 100),
        (80, {}, 200),
        (400, {}, 1000),
        (5000, {}, 1000),
        (400, {"prompts_per_step": 64}, 125),
        (400, {"pairs_file": "file-1"}, 250),
        (400, {"steps": 7}, 7),
    ],
)
def test_steps_follow_from_the_prompts_where_nobody_gives_them(prompts: int, more: dict[str, Any], steps: int) -> None:
    """20 draws of each prompt, 5 of a pair's, at least 100 steps and at most the published 1000; given ones stay."""
    assert job(prompts, **more).steps == steps


@pytest.mark.parametrize("kind", ["drpo", "dpo", "grpo", "pso", "sft", "random"])
def test_every_method_has_the_same_budget(kind: str) -> None:
    """Or a comparison with the control would be none."""
    assert job(100, method={"type": kind}).steps == job(100).steps == 250


@given(prompts=st.integers(0, 10**6), per_step=st.integers(1, 1024), of_pairs=st.booleans())
def test_chosen_steps_are_bounded_and_grow_with_the_prompts(prompts: int, per_step: int, of_pairs: bool) -> None:
    chosen = choose_steps(prompts, per_step, of_pairs=of_pairs)
    assert MIN_STEPS <= chosen <= MAX_STEPS
    assert choose_steps(prompts + 1, per_step, of_pairs=of_pairs) >= chosen or not prompts


@given(
    steps=st.integers(1, 10_000), per_step=st.integers(1, 64), candidates=st.integers(4, 64),
    staleness=st.integers(0, 16),
)  # fmt: skip
def test_pictures_cost_little_by_themselves(steps: int, per_step: int, candidates: int, staleness: int) -> None:
    """At most a twentieth of the images between two of them, and ten a run."""
    spec = job(3, steps=steps, prompts_per_step=per_step, candidates=candidates, max_staleness=staleness)
    interval, window = spec.sample_interval(), per_step * candidates
    drawn = spec.samples.prompts * spec.evaluation.images_per_prompt
    assert 20 * drawn <= interval * window
    assert steps / interval <= 10


def test_pictures_are_as_often_as_asked_for_and_can_be_turned_off() -> None:
    assert job(3, samples={"every": 7}).sample_interval() == 7
    assert job(3, samples={"every": 0}).sample_interval() == 0
    assert job(3, samples={"prompts": 0}).sample_interval() == 0
    with pytest.raises(ValueError, match=r"samples\.every is given"):
        job(3, samples={"prompts": 0, "every": 5})


def rewarded_job(*rewards: dict[str, Any], **more: Any) -> TrainSpec:
    return TrainSpec.model_validate({"prompts": [{"prompt": "a fox"}], "rewards": rewards, **more})


SHOWN = {"by": "clip", "best": 2, "worst": 2}


def test_people_may_be_shown_what_a_model_chose() -> None:
    """In either order, also by a reward that is only watched; jobs of older versions show all."""
    people, clip = {"name": "people", "shows": SHOWN}, {"name": "clip", "weight": 0}
    assert rewarded_job(people, clip).rewards[0].shows == rewarded_job(clip, people).rewards[1].shows
    assert rewarded_job({"name": "people"}).rewards[0].shows is None


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ([{"name": "people", "shows": {**SHOWN, "by": "nobody"}}], "name another reward"),
        ([{"name": "people", "shows": {**SHOWN, "by": "people"}}], "name another reward"),
        (
            [{"name": "people", "shows": SHOWN}, {"name": "clip", "shows": {**SHOWN, "by": "people"}}],
            "no `shows` itself",
        ),
        ([{"name": "people", "shows": {"by": "clip", "best": 1}}, {"name": "clip"}], "at least 2"),
    ],
    ids=["unknown", "itself", "in a circle", "one image"],
)
def test_who_chooses_what_is_shown_must_be_there(rewards: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        rewarded_job(*rewards)


def test_what_evaluations_show_is_chosen_in_evaluations() -> None:
    rewards = {"name": "people", "shows": SHOWN}, {"name": "clip", "evaluates": False}
    with pytest.raises(ValidationError, match="evaluates alike"):
        rewarded_job(*rewards, evaluation={"prompts": [{"prompt": "a fox"}]})
    assert rewarded_job({**rewards[0], "evaluates": False}, rewards[1], evaluation={"prompts": [{"prompt": "a fox"}]})
