"""Weights of rewards that are changed while a job trains: which weights count at which step.

    schedule = RewardSchedule(spec.rewards)
    schedule.changes = take_weight_changes(step)     # every change so far, each with the step that it counts from
    schedule.at(step)                                # the rewards as they combine a group that step `step` trains on

A change counts from the first step that begins after it was asked for, and that step is stored before it begins
(jobs/leases.py): whoever trains a step again, after a crash or as a replay, has the weights that it had. Weights enter
when a group's scores become its order, so a group that was ranked before a change and is trained on after it is ordered
by the new weights. Nothing is asked again: every reward is asked about every group, whatever its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError

from dipole.errors import InvalidInput
from dipole.protocol.schemas import Name
from dipole.protocol.validation import first_error
from dipole_trainer.spec import CountOrZero, RewardSpec, SpecModel, TrainSpec

MAX_CHANGES = 1000  # of one job: all of them stand in its row


class RewardWeights(SpecModel):
    """New weights for some of a running job's rewards; the others keep theirs."""

    weights: dict[Name, float] = Field(
        min_length=1,
        max_length=32,
        description="New weight of each reward that is named. Below 0 lower scores are better; 0 holds the reward out "
        "from there on.",
    )


class WeightChange(RewardWeights):
    """A change of weights, as a job keeps it."""

    step: CountOrZero | None = Field(
        default=None,
        description="Number of updates that were done with the weights before; null until a step begins with the new.",
    )


@dataclass
class RewardSchedule:
    """A job's rewards from step to step. `changes` are in the order that they were asked for."""

    rewards: Sequence[RewardSpec]
    changes: Sequence[WeightChange] = field(default=())

    def at(self, step: int) -> tuple[RewardSpec, ...]:
        """The rewards as they count for update `step`, from 0."""
        return apply_changes(
            self.rewards, [each for each in self.changes if each.step is not None and each.step <= step]
        )

    def trained_before(self, step: int) -> dict[str, float]:
        """By reward, its newest weight other than 0 of the first `step` updates: what the model has been trained on."""
        began = [0, *(each.step for each in self.changes if each.step is not None and 0 < each.step < step)]
        return {reward.name: reward.weight for start in began for reward in self.at(start) if reward.is_trained}

    def held_out_before(self, step: int) -> list[str]:
        """Rewards that the first `step` updates only watched. One that was ever trained on is no witness any more."""
        trained = self.trained_before(step)
        return [each.name for each in self.rewards if each.name not in trained and each.at_least is None]


def apply_changes(rewards: Sequence[RewardSpec], changes: Sequence[WeightChange]) -> tuple[RewardSpec, ...]:
    """The rewards after these changes. All else of a reward stays: one that is held out is not required meanwhile, and
    one that a job began with as held out stays optional.
    """
    weights = {name: weight for change in changes for name, weight in change.weights.items()}
    return tuple(
        RewardSpec.model_validate({**dict(reward), "weight": weights[reward.name]})
        if reward.name in weights
        else reward
        for reward in rewards
    )


def check_change(spec: TrainSpec, changes: Sequence[WeightChange], asked: RewardWeights) -> WeightChange | None:
    """What `asked` changes of a job that was created with `spec` and has changed before; None where it has it so.

    Raises InvalidInput that names the field where the job could not be trained like that.
    """
    if spec.is_offline:
        raise InvalidInput(
            "weights: this job trains on recorded preferences, whose weights stay: create another replay",
            field="weights",
        )
    present = {reward.name: reward.weight for reward in apply_changes(spec.rewards, changes)}
    for name in asked.weights:
        if name not in present:
            raise InvalidInput(
                f"weights.{name}: the job has no such reward; it has {', '.join(present)}", field=f"weights.{name}"
            )
    different = {name: weight for name, weight in asked.weights.items() if weight != present[name]}
    if not different:
        return None
    change = WeightChange(weights=different)
    _check_trainable(spec, apply_changes(spec.rewards, [*changes, change]))
    return change


def _check_trainable(spec: TrainSpec, rewards: tuple[RewardSpec, ...]) -> None:
    """As a new job with these rewards is checked. One prompt stands for all: there may be a million."""
    changed: dict[str, Any] = {**dict(spec), "rewards": rewards, "prompts": spec.prompts[:1]}
    try:
        TrainSpec.model_validate(changed)
    except ValidationError as error:
        raise InvalidInput(f"weights: {first_error(error, '').sentence}", field="weights") from None
    except InvalidInput as error:
        raise InvalidInput(f"weights: {error}", field="weights") from None


def read_weight_changes(stored: Sequence[Mapping[str, Any]] | None) -> list[WeightChange]:
    """As a job's row has them."""
    return [WeightChange.model_validate(each) for each in stored or ()]


def describe_role(reward: RewardSpec, changes: Sequence[WeightChange]) -> str:
    """What a reward does in a job: `trained, weight 1, 0.5 after step 8`, `gate, 0.9 or more`, both, or `held out`."""
    known = [change for change in changes if reward.name in change.weights and change.step is not None]
    later = [f"{change.weights[reward.name]:g} after step {change.step}" for change in known]
    is_trained = reward.is_trained or any(change.weights[reward.name] for change in known)
    roles = [f"trained, weight {', '.join([f'{reward.weight:g}', *later])}"] if is_trained else []
    roles += [f"gate, {reward.at_least:g} or more"] if reward.at_least is not None else []
    return "; ".join(roles) or "held out"


def describe_change(rewards: Sequence[RewardSpec], changes: Sequence[WeightChange], number: int) -> dict[str, Any]:
    """Of change `number` of a job, by reward, the weight before and the weight after."""
    before = {reward.name: reward.weight for reward in apply_changes(rewards, changes[:number])}
    return {
        name: {"old": before[name], "new": weight} for name, weight in changes[number].weights.items() if name in before
    }
