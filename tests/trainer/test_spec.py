"""What a spec fills in by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole.errors import InvalidInput
from dipole_trainer.spec import DpoSpec, DrpoSpec, MethodSpec


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
