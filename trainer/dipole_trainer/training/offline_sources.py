"""Groups whose order is known before they are drawn: pairs from a file, and a finished job's rankings once more.

x is drawn by the present weights, as online, and moves with them; what it is compared with (`ranked`) stays: images
that people chose and rejected, or the samples that the other job had ranked. No reward is asked.

    Pairs    a prompt's rows are one group: encoded chosen images score 1, rejected ones 0
    Replay   the recorded latents and scores, under the same or other weights of the rewards, with any method
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cachetools import LRUCache
from safetensors import safe_open
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.datasets import pairs, recordings
from dipole_trainer.datasets.recordings import Recorded, RecordedGroup
from dipole_trainer.distributed.group import World
from dipole_trainer.ranking.groups import Group, RankedGroup, RewardResult
from dipole_trainer.seeds import seeds_for, window
from dipole_trainer.spec import DpoSpec, DrpoSpec, PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.training.rollout import Drawn, Rollout

CACHED_ROWS = 1024  # encoded pairs kept, least recently used first out: 128 KB each at 512²
PREFERENCE = "preference"  # the one reward of a pairs file


class Told:
    """A groups.Ranker for answers that are there already. Of a group that is submitted it knows no scores."""

    def __init__(self) -> None:
        self._answers: deque[RankedGroup] = deque()

    def tell(self, group_id: str, results: dict[str, RewardResult]) -> None:
        self._answers.append(RankedGroup(group_id, results))

    def submit(self, group: Group) -> None:
        self.tell(group.id, {})

    def collect(self, timeout_s: float) -> RankedGroup | None:
        return self._answers.popleft() if self._answers else None

    def cancel(self) -> None:
        self._answers.clear()


class Pairs:
    """A pairs file as a sources.Source; the window walks over its prompts."""

    def __init__(self, spec: TrainSpec, rollout: Rollout, world: World, job_id: str, data: Path) -> None:
        self.spec, self.rollout, self.world, self.job_id, self.data = spec, rollout, world, job_id, data
        self.rows = pairs.index(data)  # offsets by prompt
        self.prompts = [PromptSpec(prompt=prompt) for prompt in self.rows]
        self.rewards, self.rank = (RewardSpec(name=PREFERENCE),), Told()
        sides = spec.method.settings
        self._most = max(sides.positives, sides.negatives) if isinstance(sides, DrpoSpec | DpoSpec) else 1
        self._latents: LRUCache[int, Tensor] = LRUCache(CACHED_ROWS)

    def draw(self, step: int) -> dict[str, Drawn]:
        groups = {}
        for index, prompt in enumerate(window(self.prompts, step, self.spec.prompts_per_step, self.spec.seed)):
            if self.world.mine(index):
                group_id = f"{self.job_id}.{step}.{index}"
                groups[group_id] = self._group(group_id, self.rollout.draw(step, index, prompt), step)
        return groups

    def _group(self, group_id: str, drawn: Drawn, step: int) -> Drawn:
        """The drawn samples beside as many of the prompt's pairs, at random, as one update has use for."""
        rows = self.rows[drawn.prompt.prompt]
        (seed,) = seeds_for(self.spec.seed, "pairs", step, drawn.index, count=1)
        chosen = np.random.default_rng(seed).permutation(len(rows))[: self._most]
        latents = torch.stack([self._encode(rows[row]) for row in chosen], dim=1)  # (2, rows, c, h, w)
        count = len(chosen)
        order = RewardResult(scores=(1.0,) * count + (0.0,) * count, ordinal=True)
        self.rank.tell(group_id, {PREFERENCE: order})
        return replace(drawn, ranked=latents.flatten(0, 1).to(drawn.noise.device), own=False)

    def _encode(self, row: int) -> Tensor:
        """A row's chosen and rejected, (2, c, h, w) on the CPU; encoded once while it is in use."""
        if (latents := self._latents.get(row)) is not None:
            return latents
        images = pairs.load(self.data, row)
        encode = self.rollout.generator.encode
        parts = self.rollout.chunks.over(range(2), lambda sides: encode([images[side] for side in sides]))
        self._latents[row] = torch.cat(parts).cpu()
        return self._latents[row]


class Replay:
    """A job's recorded steps as a sources.Source; after the last comes the first again, on its old noises."""

    def __init__(self, spec: TrainSpec, rollout: Rollout, world: World, job_id: str, data: Path) -> None:
        self.spec, self.rollout, self.world, self.job_id, self.data = spec, rollout, world, job_id, data
        self.steps = recordings.in_order(path.name for path in data.iterdir())
        if not self.steps:
            raise InvalidInput(f"the replayed job has recorded no step: {recordings.NEEDS}", field="replay_job")
        first = self._read(self.steps[0])
        recordings.check_fit(spec, first.job)
        self.rewards, self.rank = recordings.rewards(spec, first.job), Told()

    def draw(self, step: int) -> dict[str, Drawn]:
        name = self.steps[step % len(self.steps)]
        told, groups = self._read(name), {}
        with safe_open(str(self.data / name), framework="pt") as latents:
            for group in told.groups:
                if self.world.mine(group.index):
                    group_id = f"{self.job_id}.{step}.{group.index}"
                    groups[group_id] = self._group(told.step, group, latents.get_tensor(str(group.index)))
                    self.rank.tell(group_id, dict(group.results))
        return groups

    def _group(self, step: int, group: RecordedGroup, ranked: Tensor) -> Drawn:
        """x on the recorded noises. While the weights are those that drew what was ranked, x is that, to rounding."""
        drawn = self.rollout.draw(step, group.index, group.prompt)
        if tuple(drawn.seeds) != group.seeds:
            raise InvalidInput("the recorded candidates were drawn from other seeds", field="seed")
        if ranked.shape != drawn.x.shape:
            raise InvalidInput(
                f"the recorded latents are {tuple(ranked.shape)}, and this model makes {tuple(drawn.x.shape)}",
                field="replay_job",
            )
        rounding = 1e-4 if ranked.dtype == torch.float32 else 1e-2
        ranked = ranked.to(drawn.x.device, drawn.x.dtype)
        if drawn.own and torch.allclose(ranked, drawn.x, rtol=rounding, atol=rounding):
            return drawn
        return replace(drawn, ranked=ranked, own=False)

    def _read(self, name: str) -> Recorded:
        with (self.data / name).open("rb") as file:
            return recordings.read(file)
