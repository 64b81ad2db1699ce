"""Where a step's groups come from, and who says how they rank. OnlineSource here; recorded preferences in
offline_sources.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.ranking.groups import CandidateGroup, Ranker
from dipole_trainer.ranking.weight_changes import RewardSchedule
from dipole_trainer.seeds import prompts_of_step
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.training.rollout import Rollout, SampledGroup


class GroupSource(Protocol):
    """A step's groups. `ranker` answers for the groups that `draw_groups` returned, `rewards_at` says how answers are
    combined in a step.
    """

    def rewards_at(self, step: int) -> Sequence[RewardSpec]: ...

    @property
    def ranker(self) -> Ranker: ...

    @property
    def prompts(self) -> Sequence[PromptSpec]:
        """What the groups are drawn for."""

    def draw_groups(self, step: int, *, keep_graphs: bool) -> dict[str, SampledGroup]:
        """This process's share of the step's groups by id, drawn and sent to be ranked: a function of step, weights.

        `keep_graphs` says that they are trained on with these weights.
        """


class OnlineSource:
    """Samples of the present weights, ranked by the job's rewards."""

    def __init__(
        self,
        spec: TrainSpec,
        rollout: Rollout,
        ranker: Ranker,
        processes: ProcessGroup,
        job_id: str,
        schedule: RewardSchedule | None = None,
    ) -> None:
        self.spec, self.rollout, self.ranker, self.processes, self.job_id = spec, rollout, ranker, processes, job_id
        self.schedule, self.prompts = schedule or RewardSchedule(spec.rewards), spec.prompts

    def rewards_at(self, step: int) -> Sequence[RewardSpec]:
        return self.schedule.at(step)

    def draw_groups(self, step: int, *, keep_graphs: bool) -> dict[str, SampledGroup]:
        groups = {}
        for index, prompt in enumerate(
            prompts_of_step(self.spec.prompts, step, self.spec.prompts_per_step, self.spec.seed)
        ):
            if self.processes.owns(index):
                drawn = self.rollout.sample_group(step, index, prompt, keep_graphs=keep_graphs)
                group = self._make_group(step, index, drawn)
                drawn.images = group.images if self.spec.record_candidates else None
                drawn.leave_out(group.flaws)
                drawn.candidates = group
                self.ranker.submit(group)
                groups[group.id] = drawn
        return groups

    def _make_group(self, step: int, index: int, drawn: SampledGroup) -> CandidateGroup:
        """What rewards are asked: with latents where they may be sent those, and images otherwise."""
        make = partial(
            CandidateGroup, f"{self.job_id}.{step}.{index}", step, drawn.prompt.prompt, drawn.prompt.metadata,
            seeds=drawn.seeds, progress=step / self.spec.steps,
        )  # fmt: skip
        if self.spec.reward_decoder == "tiny":
            tiny, flaws = self.rollout.decode_tiny(drawn)
            if (step * self.spec.prompts_per_step + index) % self.spec.check_decoder_every:
                return make(images=tiny, flaws=flaws)
            images, flaws = self.rollout.decode_group(drawn)
            return make(images=images, flaws=flaws, compared=tiny)
        may_be_taken = self.ranker.takes_latents()
        if not self.spec.sends_latents(reads_pixels=self.rollout.reads_pixels, may_be_taken=may_be_taken):
            images, flaws = self.rollout.decode_group(drawn)
            return make(images=images, flaws=flaws)
        latents, flaws = self.rollout.pack_group(drawn)
        return make(
            images=self.rollout.decode_later(drawn), flaws=flaws, latents=latents,
            vae=self.rollout.generator.vae_fingerprint, latents_alone=self.spec.candidates_as == "latents",
        )  # fmt: skip
