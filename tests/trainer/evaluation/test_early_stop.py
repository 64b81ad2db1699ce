"""Where a job stops itself: the decision on numbers alone, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dipole.protocol.validation import blamed_field
from dipole_trainer.evaluation.early_stop import EvaluatedStep, choose_kept_step, find_early_stop
from dipole_trainer.spec import TrainSpec

PROMPTS = [{"prompt": f"prompt {number}"} for number in range(6)]


def hacking(*fallen: str) -> dict[str, Any] | None:
    return {"risen": {"r": 1.0}, "fallen": dict.fromkeys(fallen, -1.0), "what": "told"} if fallen else None


def evaluations(*each: tuple[float | None, Sequence[str]]) -> list[EvaluatedStep]:
    """Of steps 10, 20, …: a score, and what fell."""
    return [EvaluatedStep(10 * (i + 1), score, hacking(*fallen)) for i, (score, fallen) in enumerate(each)]


histories = st.lists(
    st.tuples(
        st.none() | st.floats(-10, 10, allow_nan=False), st.sets(st.sampled_from(["a", "b", "diversity"]), max_size=2)
    ),
    max_size=8,
).map(lambda each: evaluations(*((score, sorted(fallen)) for score, fallen in each)))


@given(histories)
def test_a_job_stops_at_the_first_two_in_a_row_that_lost_the_same(history: list[EvaluatedStep]) -> None:
    """Whatever comes later changes neither where nor what is kept, and one finding alone stops nothing."""
    lost = [set(each.hacking["fallen"]) if each.hacking else set() for each in history]
    rows = [second for second in range(1, len(history)) if lost[second - 1] & lost[second]]
    stop = find_early_stop(history)
    assert (stop is None) == (not rows)
    if stop is not None:
        assert (stop.since, stop.step) == (history[rows[0] - 1].step, history[rows[0]].step)
        assert set(stop.fallen) == lost[rows[0] - 1] & lost[rows[0]]
        assert find_early_stop(history[: rows[0] + 1]) == stop
        assert find_early_stop(history[: rows[0]]) is None


@given(histories)
def test_what_is_kept_was_kept_all_along(history: list[EvaluatedStep]) -> None:
    """Only an evaluation's own step may take the place of the one kept before, so its checkpoint is never pruned; and
    what was hacked is kept only where everything was.
    """
    kept = [choose_kept_step(history[: end + 1]) for end in range(len(history))]
    for index, step in enumerate(kept):
        assert step == history[index].step or (index > 0 and step == kept[index - 1])
    for each in history:
        if each.step in kept and each.hacking:
            assert each.step == history[0].step


def test_the_best_sound_step_is_kept_and_not_the_best_of_all() -> None:
    """A job whose best step is told by the trained reward itself would else end with its most hacked one."""
    history = evaluations((0.1, ()), (0.4, ()), (0.3, ()), (0.8, ("a",)), (0.9, ("a",)))
    stop = find_early_stop(history)
    assert stop is not None
    assert (stop.since, stop.step, stop.kept) == (40, 50, 20)
    assert "step 20" in stop.reason()
    assert choose_kept_step(evaluations((0.5, ("a",)), (0.9, ("a",)))) == 10, "the first, which did it least"
    assert choose_kept_step(evaluations((0.5, ()), (0.5, ()))) == 10, "the earlier of equals"
    assert choose_kept_step([]) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"evaluation": {"prompts": PROMPTS}}, "evaluation.every"),
        ({"evaluation": {"prompts": PROMPTS[:5], "every": 1}}, "6 held-out prompts"),
        ({"evaluation": {"prompts": PROMPTS, "every": 1, "images_per_prompt": 1}}, "hold a reward out"),
        ({"evaluation": {"prompts": PROMPTS, "every": 1}, "rewards": [{"name": "r", "evaluates": False}]}, "trained"),
    ],
)
def test_a_stop_that_nothing_could_bring_about_is_refused(changes: dict[str, Any], why: str) -> None:
    base = {"prompts": PROMPTS, "rewards": [{"name": "r"}], "stop_on": "hacking"}
    with pytest.raises(ValidationError, match=why) as refused:
        TrainSpec.model_validate({**base, **changes})
    assert blamed_field(refused.value) == "stop_on"
    TrainSpec.model_validate({**base, "evaluation": {"prompts": PROMPTS, "every": 1}})
