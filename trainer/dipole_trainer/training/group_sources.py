"""Where a step's groups come from, and who says how they rank. Online here; recorded preferences in offline.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dipole_trainer.distributed.group import World
from dipole_trainer.ranking.groups import Group, Ranker
from dipole_trainer.seeds import window
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.training.rollout import Drawn, Rollout


class Source(Protocol):
    """A step's groups. `rank` answers for the groups that `draw` returned, `rewards` says how answers are combined."""

    @property
    def rewards(self) -> Sequence[RewardSpec]: ...

    @property
    def rank(self) -> Ranker: ...

    def draw(self, step: int) -> dict[str, Drawn]:
        """This process's share of the step's groups by id, drawn and sent to be ranked: a function of step, weights."""


class Online:
    """Samples of the present weights, ranked by the job's rewards."""

    def __init__(self, spec: TrainSpec, rollout: Rollout, rank: Ranker, world: World, job_id: str) -> None:
        self.spec, self.rollout, self.rank, self.world, self.job_id = spec, rollout, rank, world, job_id
        self.rewards = spec.rewards

    def draw(self, step: int) -> dict[str, Drawn]:
        groups = {}
        for index, prompt in enumerate(window(self.spec.prompts, step, self.spec.prompts_per_step, self.spec.seed)):
            if self.world.mine(index):
                drawn = self.rollout.draw(step, index, prompt)
                images = self.rollout.images(drawn.ranked)
                group = Group(
                    f"{self.job_id}.{step}.{index}", step, prompt.prompt, prompt.metadata, images, drawn.seeds
                )
                self.rank.submit(group)
                groups[group.id] = drawn
        return groups
