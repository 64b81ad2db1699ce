"""Weights that change while a run trains: from which step they count, and that a resume and a replay have them too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dipole.errors import InvalidInput, RewardUnavailable
from dipole.tiny.world import all_prompts
from dipole_trainer.checkpoints.model_card import render_model_card
from dipole_trainer.checkpoints.usage_snippet import PipelineUsage
from dipole_trainer.datasets.recordings import read_recorded_step
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.ranking.in_flight import GroupsInFlight, failed_result
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.ranking.weight_changes import RewardSchedule, RewardWeights, WeightChange, check_change
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:6]]
BASE: dict[str, Any] = {
    "model": "tiny-turbo", "prompts": LINES, "steps": 4, "candidates": 4, "prompts_per_step": 2, "chunk_size": 4,
    "checkpoint_every": 1, "keep_checkpoints": 4, "optimizer": {"lr": 1e-3}, "lora": {"rank": 4},
    "samples": {"prompts": 0}, "method": {"drpo": {"positives": 2, "negatives": 2}},
    "rewards": [{"name": "bright"}, {"name": "red", "weight": 0}],
}  # fmt: skip
SCORERS = {
    "bright": lambda prompt, images, metadata: images.astype(np.float64).mean((1, 2, 3)).tolist(),
    "red": lambda prompt, images, metadata: images[..., 0].astype(np.float64).mean((1, 2)).tolist(),
}
SWAPPED = WeightChange(weights={"bright": 0, "red": -1}, step=2)


def train(
    workdir: Path, changes: Sequence[WeightChange] = (), *, stop_at: int | None = None, **more: Any
) -> tuple[dict[str, torch.Tensor], TrainSpec]:
    """The newest checkpoint's weights; the run is paused once it has reported step `stop_at`."""
    spec, reported = TrainSpec.model_validate({**BASE, **more}), []

    def on_event(kind: str, data: dict[str, Any]) -> None:
        if kind == "step":
            reported.append(data["step"])

    session.run_session(
        spec, job_id="job", workdir=workdir, models_dir=workdir, on_event=on_event,
        ranker=InProcessRanker(SCORERS, spec.rewards),  # type: ignore[arg-type]
        control=lambda: "pause" if stop_at in reported else "run", take_weight_changes=lambda step: changes,
    )  # fmt: skip
    trained = job_layout.newest_checkpoint(workdir)
    assert trained is not None
    return load_file(trained / job_layout.adapter_weights_file("unet")), spec


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def recorded_weights(workdir: Path, step: int) -> dict[str, float]:
    with (workdir / job_layout.CANDIDATES_FOLDER / job_layout.candidates_file_name(step)).open("rb") as file:
        return {reward.name: reward.weight for reward in read_recorded_step(file).job.rewards}


def test_a_change_counts_from_its_step_and_a_resume_from_before_it_repeats_both(tmp_path: Path) -> None:
    """Up to its step the run is the unchanged one; from there another. A run that is resumed from a checkpoint before
    the change trains the steps between with the old weights again, and ends with the same bits.
    """
    plain, _ = train(tmp_path / "plain", stop_at=2)
    changed, _ = train(tmp_path / "changed", [SWAPPED], stop_at=2)
    assert same(plain, changed)
    plain, _ = train(tmp_path / "plain")
    changed, _ = train(tmp_path / "changed", [SWAPPED])
    assert not same(plain, changed)
    train(tmp_path / "again", stop_at=1)
    again, _ = train(tmp_path / "again", [SWAPPED])
    assert same(changed, again)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_recording_has_each_step_s_weights_and_a_replay_uses_them(tmp_path: Path, max_staleness: int) -> None:
    """Also of groups that were drawn and ranked before the change and are trained on after it (`max_staleness`). The
    replay's updates are the recorded run's, to rounding, where its samples are the recorded ones: in a method that
    looks at nothing else.
    """
    changed, _ = train(tmp_path / "run", [SWAPPED], record_candidates=True, max_staleness=max_staleness)
    assert [recorded_weights(tmp_path / "run", step)["bright"] for step in range(4)] == [1, 1, 0, 0]
    assert [recorded_weights(tmp_path / "run", step)["red"] for step in range(4)] == [0, 0, -1, -1]
    if max_staleness:
        return
    replay = TrainSpec.model_validate({**BASE, "prompts": [], "rewards": [], "replay_job": "job"})
    session.run_session(
        replay, job_id="replay", workdir=tmp_path / "replay", models_dir=tmp_path, on_event=lambda kind, data: None,
        ranker=InProcessRanker({}), control=lambda: "run", data=tmp_path / "run" / job_layout.CANDIDATES_FOLDER,
    )  # fmt: skip
    trained = job_layout.newest_checkpoint(tmp_path / "replay")
    assert trained is not None
    replayed = load_file(trained / job_layout.adapter_weights_file("unet"))
    assert all(torch.allclose(changed[name], replayed[name], atol=1e-5) for name in changed)


def test_what_was_ever_trained_on_is_no_witness() -> None:
    """Hacking is looked for in what was never trained on; a sign that was turned is the newest one."""
    rewards = [RewardSpec(name=name, weight=weight) for name, weight in (("a", 1.0), ("b", 0.0), ("c", 0.0))]
    changes = [WeightChange(weights={"a": 0, "b": 1}, step=3), WeightChange(weights={"b": -2}, step=5)]
    schedule = RewardSchedule(rewards, [*changes, WeightChange(weights={"c": 1})])
    assert (schedule.trained_before(3), schedule.held_out_before(3)) == ({"a": 1}, ["b", "c"])
    assert (schedule.trained_before(4), schedule.held_out_before(4)) == ({"a": 1, "b": 1}, ["c"])
    assert (schedule.trained_before(9), schedule.held_out_before(9)) == ({"a": 1, "b": -2}, ["c"])
    assert [each.weight for each in schedule.at(5)] == [0, -2, 0]


def test_a_reward_is_required_as_long_as_it_is_trained_on() -> None:
    """Held out it may fail, also for a group that was asked before; trained on again it may not. One that the job began
    with as held out stays optional.
    """
    rewards = [RewardSpec(name="a"), RewardSpec(name="b", weight=0)]
    schedule = RewardSchedule(
        rewards, [WeightChange(weights={"a": 0, "b": 1}, step=1), WeightChange(weights={"a": 2}, step=2)]
    )
    assert [[each.required for each in schedule.at(step)] for step in range(3)] == [
        [True, False],
        [False, False],
        [True, False],
    ]
    group = CandidateGroup("g", 0, "p", None, np.zeros((2, 4, 4, 3), np.uint8), (1, 2))
    flights = GroupsInFlight(rewards)
    flights.add_group(group, 0.0)
    flights.change_rewards(schedule.at(1))
    assert flights.put_result("g", "a", failed_result(2, "http_status: 500"), 1.0)
    flights.put_result("g", "b", RewardResult(scores=(0.0, 1.0)), 1.0)
    ranked = flights.pop_finished()
    assert ranked is not None
    assert ranked.results["a"].failure == "http_status: 500"
    flights.change_rewards(schedule.at(2))
    flights.add_group(group, 2.0)
    with pytest.raises(RewardUnavailable):
        flights.put_result("g", "a", failed_result(2, "http_status: 500"), 3.0)


def test_an_answer_from_before_does_not_say_that_its_reward_is_back() -> None:
    """A silent reward stays so when an answer of it is remembered, and is back when it answers."""
    rewards = [RewardSpec(name="a"), RewardSpec(name="b", required=False, timeout_s=1)]
    flights = GroupsInFlight(rewards)

    def rank(name: str, now: float, *, is_remembered: bool) -> list[str]:
        flights.add_group(CandidateGroup(name, 0, "p", None, np.zeros((2, 4, 4, 3), np.uint8), (1, 2)), now)
        flights.put_result(name, "b", RewardResult(scores=(0.0, 1.0)), now, is_remembered=is_remembered)
        flights.put_result(name, "a", RewardResult(scores=(0.0, 1.0)), now)
        ranked = flights.pop_finished()
        assert ranked is not None
        return list(ranked.came_back)

    flights.add_group(CandidateGroup("late", 0, "p", None, np.zeros((2, 4, 4, 3), np.uint8), (1, 2)), 0.0)
    flights.put_result("late", "a", RewardResult(scores=(0.0, 1.0)), 0.0)
    flights.expire_overdue(10.0)
    ranked = flights.pop_finished()
    assert ranked is not None
    assert list(ranked.became_silent) == ["b"]
    assert rank("known", 11.0, is_remembered=True) == []
    assert rank("asked", 12.0, is_remembered=False) == ["b"]


@pytest.mark.parametrize(
    ("more", "weights", "field", "said"),
    [
        ({}, {"nobody": 1}, "weights.nobody", "it has bright, red"),
        ({}, {"bright": 0}, "weights", "at least one needs a weight"),
        ({"prompts": [], "rewards": [], "replay_job": "other"}, {"bright": 2}, "weights", "recorded preferences"),
        (
            {"stop_on": "hacking", "evaluation": {"every": 1, "prompts": LINES, "images_per_prompt": 1}},
            {"red": 1}, "weights", "something that may fall",
        ),
    ],
)  # fmt: skip
def test_a_change_that_no_job_could_be_trained_with_is_refused(
    more: dict[str, Any], weights: dict[str, float], field: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as told:
        check_change(TrainSpec.model_validate({**BASE, **more}), [], RewardWeights(weights=weights))
    assert told.value.field == field


def test_what_a_job_has_already_is_no_change() -> None:
    spec = TrainSpec.model_validate(BASE)
    assert check_change(spec, [], RewardWeights(weights={"bright": 1, "red": 0})) is None
    assert check_change(spec, [SWAPPED], RewardWeights(weights={"bright": 0, "red": 2})) == WeightChange(
        weights={"red": 2}
    )


def test_the_model_card_tells_each_weight() -> None:
    """Those that the checkpoint was trained with: what changed after it is not said."""
    usage = PipelineUsage("StableDiffusionPipeline", {"num_inference_steps": 1, "guidance_scale": 0.0})
    card = render_model_card(
        TrainSpec.model_validate(BASE), step=4, precision="fp32", usage=usage, files=[],
        weight_changes=[SWAPPED, WeightChange(weights={"red": 3}, step=4)],
    )  # fmt: skip
    assert "| rewards | bright (trained, weight 1, 0 after step 2), red (trained, weight 0, -1 after step 2) |" in card


def test_what_is_asked_for_during_an_evaluation_counts_from_the_step_after_it(tmp_path: Path) -> None:
    """The base's evaluation too: changes are taken as a step begins, once each, and none for a step that never does."""
    evaluated: list[int] = []
    asked: list[tuple[int, list[int]]] = []
    spec = TrainSpec.model_validate(
        {**BASE, "evaluation": {"prompts": LINES[:1], "images_per_prompt": 2, "every": 2}, "checkpoint_every": 2}
    )

    def take(step: int) -> Sequence[WeightChange]:
        asked.append((step, list(evaluated)))
        return ()

    session.run_session(
        spec, job_id="job", workdir=tmp_path, models_dir=tmp_path, ranker=InProcessRanker(SCORERS, spec.rewards),  # type: ignore[arg-type]
        on_event=lambda kind, data: evaluated.append(data["step"]) if kind == "evaluation" else None,
        control=lambda: "run", take_weight_changes=take,
    )  # fmt: skip
    assert asked == [(4, []), (0, [0]), (1, [0]), (2, [0, 2]), (3, [0, 2])], "first those that began before a resume"
