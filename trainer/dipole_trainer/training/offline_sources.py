"""Groups whose order is known before they are drawn: pairs from a file, and a finished job's rankings once more.

x is drawn by the present weights, as online, and moves with them; what it is compared with (`ranked`) stays: images
that people chose and rejected, or the samples that the other job had ranked. No reward is asked.

    PairsSource    a prompt's rows are one group: encoded chosen images score 1, rejected ones 0
    ReplaySource   the recorded latents and scores, under the same or other weights of the rewards, with any method
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cachetools import LRUCache
from safetensors import safe_open
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.datasets import pairs, recordings
from dipole_trainer.datasets.recordings import RecordedGroup, RecordedStep
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.ranking.groups import RewardResult
from dipole_trainer.ranking.known_answers import KnownAnswersRanker
from dipole_trainer.seeds import derive_seeds, prompts_of_step
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training.rollout import Rollout, SampledGroup

MAX_CACHED_PAIRS = 1024  # encoded pairs kept, least recently used first out: 128 KB each at 512²
PREFERENCE_REWARD = "preference"  # the one reward of a pairs file


class PairsSource:
    """A pairs file as a GroupSource; the window walks over its prompts."""

    def __init__(self, spec: TrainSpec, rollout: Rollout, processes: ProcessGroup, job_id: str, data: Path) -> None:
        self.spec, self.rollout, self.processes, self.job_id, self.data = spec, rollout, processes, job_id, data
        self.rows = pairs.index_pairs(data)  # offsets by prompt
        self.prompts = [PromptSpec(prompt=prompt) for prompt in self.rows]
        self.rewards, self.ranker = (RewardSpec(name=PREFERENCE_REWARD),), KnownAnswersRanker()
        self._max_pairs = max(spec.method.settings.sides(spec.candidates))
        self._latents: LRUCache[int, Tensor] = LRUCache(MAX_CACHED_PAIRS)

    def rewards_at(self, step: int) -> Sequence[RewardSpec]:
        return self.rewards

    def draw_groups(self, step: int, *, keep_graphs: bool) -> dict[str, SampledGroup]:
        groups = {}
        for index, prompt in enumerate(prompts_of_step(self.prompts, step, self.spec.prompts_per_step, self.spec.seed)):
            if self.processes.owns(index):
                group_id = f"{self.job_id}.{step}.{index}"
                groups[group_id] = self._add_pairs(group_id, self.rollout.sample_group(step, index, prompt), step)
        return groups

    def _add_pairs(self, group_id: str, drawn: SampledGroup, step: int) -> SampledGroup:
        """The drawn samples beside as many of the prompt's pairs, at random, as one update has use for."""
        rows = self.rows[drawn.prompt.prompt]
        (seed,) = derive_seeds(self.spec.seed, "pairs", step, drawn.index, count=1)
        chosen = np.random.default_rng(seed).permutation(len(rows))[: self._max_pairs]
        latents = torch.stack([self._encode_pair(rows[row]) for row in chosen], dim=1)  # (2, rows, c, h, w)
        count = len(chosen)
        order = RewardResult(scores=(1.0,) * count + (0.0,) * count, ordinal=True)
        self.ranker.put_answer(group_id, {PREFERENCE_REWARD: order})
        return replace(
            drawn,
            ranked_latents=latents.flatten(0, 1).to(drawn.noise.device),
            ranks_itself=False,
            ranks_candidates=False,
        )

    def _encode_pair(self, row: int) -> Tensor:
        """A row's chosen and rejected, (2, c, h, w) on the CPU; encoded once while it is in use."""
        if (latents := self._latents.get(row)) is not None:
            return latents
        images = pairs.load_pair_images(self.data, row)
        encode = self.rollout.generator.encode_images
        parts = self.rollout.micro_batches.map(range(2), lambda sides: encode([images[side] for side in sides]))
        self._latents[row] = torch.cat(parts).cpu()
        return self._latents[row]


class ReplaySource:
    """A job's recorded steps as a GroupSource; after the last comes the first again, on its old noises."""

    def __init__(self, spec: TrainSpec, rollout: Rollout, processes: ProcessGroup, job_id: str, data: Path) -> None:
        self.spec, self.rollout, self.processes, self.job_id, self.data = spec, rollout, processes, job_id, data
        self.steps = job_layout.sort_candidate_files(path.name for path in data.iterdir())
        self._read: LRUCache[str, RecordedStep] = LRUCache(1)
        if not self.steps:
            raise InvalidInput(
                f"the replayed job has recorded no step: {recordings.NEEDS_RECORDING}", field="replay_job"
            )
        recordings.check_replay_fits(spec, self._read_step(0).job)
        self.prompts, self.ranker = spec.prompts, KnownAnswersRanker()

    def rewards_at(self, step: int) -> Sequence[RewardSpec]:
        """As the replay says, or as the recorded step had them: weights may have been changed in between."""
        return recordings.rewards_of_replay(self.spec, self._read_step(step).job)

    def draw_groups(self, step: int, *, keep_graphs: bool) -> dict[str, SampledGroup]:
        name = self.steps[step % len(self.steps)]
        told, groups = self._read_step(step), {}
        with safe_open(str(self.data / name), framework="pt") as latents:
            for group in told.groups:
                if self.processes.owns(group.index):
                    group_id = f"{self.job_id}.{step}.{group.index}"
                    groups[group_id] = self._replay_group(told.step, group, latents.get_tensor(str(group.index)))
                    self.ranker.put_answer(group_id, dict(group.results))
        return groups

    def _replay_group(self, step: int, group: RecordedGroup, ranked: Tensor) -> SampledGroup:
        """x on the recorded noises. While the weights are those that drew what was ranked, x is that, to rounding."""
        drawn = self.rollout.sample_group(step, group.index, group.prompt)
        if not set(group.seeds) <= set(drawn.seeds):
            raise InvalidInput("the recorded candidates were drawn from other seeds", field="seed")
        drawn.leave_out({row: "it was not recorded" for row in drawn.rows if drawn.seeds[row] not in group.seeds})
        drawn = replace(drawn, rows=range(len(drawn.seeds)), flaws={})
        if ranked.shape != drawn.x.shape:
            raise InvalidInput(
                f"the recorded latents are {tuple(ranked.shape)}, and this model makes {tuple(drawn.x.shape)}",
                field="replay_job",
            )
        rounding = 1e-4 if ranked.dtype == torch.float32 else 1e-2
        ranked = ranked.to(drawn.x.device, drawn.x.dtype)
        if drawn.ranks_itself and torch.allclose(ranked, drawn.x, rtol=rounding, atol=rounding):
            return drawn
        return replace(drawn, ranked_latents=ranked, ranks_itself=False)

    def _read_step(self, step: int) -> RecordedStep:
        """What was recorded of the step that this one replays; the last that was read is kept."""
        name = self.steps[step % len(self.steps)]
        if name not in self._read:
            with (self.data / name).open("rb") as file:
                self._read[name] = recordings.read_recorded_step(file)
        return self._read[name]
