"""What a spec fills in by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole_trainer.spec import DpoSpec, DrpoSpec, MethodSpec, TrainSpec


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


def job(*rewards: dict[str, Any], **more: Any) -> TrainSpec:
    return TrainSpec.model_validate({"prompts": [{"prompt": "a fox"}], "rewards": rewards, **more})


SHOWN = {"by": "clip", "best": 2, "worst": 2}


def test_people_may_be_shown_what_a_model_chose() -> None:
    """In either order, also by a reward that is only watched; jobs of older versions show all."""
    people, clip = {"name": "people", "shows": SHOWN}, {"name": "clip", "weight": 0}
    assert job(people, clip).rewards[0].shows == job(clip, people).rewards[1].shows
    assert job({"name": "people"}).rewards[0].shows is None


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
        job(*rewards)


def test_what_evaluations_show_is_chosen_in_evaluations() -> None:
    rewards = {"name": "people", "shows": SHOWN}, {"name": "clip", "evaluates": False}
    with pytest.raises(ValidationError, match="evaluates alike"):
        job(*rewards, evaluation={"prompts": [{"prompt": "a fox"}]})
    assert job({**rewards[0], "evaluates": False}, rewards[1], evaluation={"prompts": [{"prompt": "a fox"}]})
