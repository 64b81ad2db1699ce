"""Groups of candidates, and what comes back for them: the seam between the training loop and whoever ranks.

The loop knows a Ranker and nothing of queues; `ranking` implements one over Celery, tests implement one in-process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole.protocol.latents import Latents
from dipole_trainer.ranking.lazy_images import LazyImages
from dipole_trainer.spec import RewardSpec

TWIN = ".tiny"  # ends the id of a group that is ranked a second time, on another decoder's images
SILENT = "silent"  # code of a failure that is told once and not of each group: nobody waits for this reward now


@dataclass(frozen=True)
class CandidateGroup:
    """K candidates of one prompt, on their way to the rewards.

    `id` is a function of job, step and position in the step, so a resumed run asks the same question again.
    `images` is uint8 (K, H, W, 3) RGB; `seeds[k]` drew candidate k's noise. `flaws` says of candidates that have no
    image why, by row: rewards are asked for the others, and these get no score. `asked` names the rewards that are
    asked, None all. `progress` is the share of the job's updates before the group's step; None in evaluations, whose
    scores are compared from step to step.

    `latents`, float16 (K, c, h, w) of the VAE whose fingerprint is `vae`, are there where endpoints with that VAE may
    be sent those; `images` are then decoded if one is not. With `latents_alone` none is sent images.

    `compared` are the same candidates by another decoder, to be ranked too (decoder_check.py).
    """

    id: str
    step: int
    prompt: str
    metadata: Mapping[str, JsonValue] | None
    images: NDArray[np.uint8] | LazyImages
    seeds: Sequence[int]
    flaws: Mapping[int, str] = field(default_factory=dict)
    asked: frozenset[str] | None = None
    progress: float | None = None
    latents: Latents | None = None
    vae: str | None = None
    latents_alone: bool = False
    compared: NDArray[np.uint8] | None = None

    def without_flaws(self) -> CandidateGroup:
        """The candidates that have an image."""
        if not self.flaws:
            return self
        rows = [row for row in range(len(self.images)) if row not in self.flaws]
        return self.of_rows(rows)

    def of_rows(self, rows: list[int]) -> CandidateGroup:
        """Some of the candidates, which have an image."""
        return replace(
            self,
            images=self.images.of_rows(rows) if isinstance(self.images, LazyImages) else self.images[rows],
            latents=None if self.latents is None else self.latents[rows],
            compared=None if self.compared is None else self.compared[rows],
            seeds=[self.seeds[row] for row in rows],
            flaws={},
        )


@dataclass(frozen=True)
class RewardResult:
    """One reward's answer for one group: K scores in candidate order, None where it has none and `errors` says why.

    `failure` is set when the reward gave nothing usable at all; then every score is None. `sub_scores` are the parts
    some rewards tell of their scores (strict and graded, say): K values a name, watched and never trained on.
    `ordinal` says that the scores only order this group's candidates, as negated ranks do, and compare with no other's.
    `verified` is what the endpoint says of its weights: False where nobody has compared them with what was published.
    `seen_as` says whether it was sent images or latents, and `images_because` why images where its endpoint does take
    latents, but of another VAE.
    """

    scores: tuple[float | None, ...]
    sub_scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    failure: str | None = None
    ordinal: bool = False
    model: str = ""
    model_revision: str = ""
    recipe_version: str = ""
    verified: bool | None = None
    seconds: float = 0.0
    seen_as: Literal["images", "latents"] = "images"
    images_because: str | None = None

    def with_flaws(self, flaws: Mapping[int, str]) -> RewardResult:
        """The answer for a group `without_flaws` as one for the whole: null, with its reason, where a flaw is."""
        if not flaws:
            return self
        rows = [row for row in range(len(self.scores) + len(flaws)) if row not in flaws]

        def spread(values: Sequence[float | None]) -> tuple[float | None, ...]:
            placed = dict(zip(rows, values, strict=True))
            return tuple(placed.get(row) for row in range(len(rows) + len(flaws)))

        return replace(
            self,
            scores=spread(self.scores),
            sub_scores={name: spread(values) for name, values in self.sub_scores.items()},
            errors={**{rows[row]: why for row, why in self.errors.items()}, **flaws},
        )

    def of_rows(self, rows: Sequence[int]) -> RewardResult:
        """The answer for some of the candidates."""
        return replace(
            self,
            scores=tuple(self.scores[row] for row in rows),
            sub_scores={name: tuple(values[row] for row in rows) for name, values in self.sub_scores.items()},
            errors={place: self.errors[row] for place, row in enumerate(rows) if row in self.errors},
        )


@dataclass(frozen=True)
class Agreement:
    """How far a group's order is the same on images of two decoders: Kendall's τ-b of all candidates, and the share of
    those chosen, best and worst, that both choose.
    """

    tau: float
    overlap: float


@dataclass(frozen=True)
class RankedGroup:
    """Every reward's answer for one group, by reward name.

    `became_silent` says of rewards that groups wait for no more why, `came_back` names those that they wait for again:
    since the last group that said so.
    """

    group_id: str
    results: Mapping[str, RewardResult]
    became_silent: Mapping[str, str] = field(default_factory=dict)
    came_back: Sequence[str] = ()
    agreement: Agreement | None = None

    def of_rows(self, rows: Sequence[int]) -> RankedGroup:
        """The answers for some of the candidates."""
        return replace(self, results={name: result.of_rows(rows) for name, result in self.results.items()})

    def report_failures(self, step: int, on_event: OnEvent) -> None:
        """Tell of each reward that gave nothing, and why; of a silent one when it becomes so and when it is back."""
        for name, why in self.became_silent.items():
            job_events.RewardSilent(step=step, reward=name, reason=why).report(on_event)
        for name in self.came_back:
            job_events.RewardAnswersAgain(step=step, reward=name).report(on_event)
        for name, result in self.results.items():
            if result.failure is not None and not result.failure.startswith(f"{SILENT}:"):
                job_events.RewardLeftOut(step=step, reward=name, group=self.group_id, reason=result.failure).report(
                    on_event
                )


@dataclass(frozen=True)
class RankingBacklog:
    """What a reward that takes its time (202) has not answered yet: groups with how long they wait there, in s.

    `answered` of its rankings that were pending came, the last of them at `per_minute`; None before the first.
    """

    waiting: Mapping[str, float]
    answered: int = 0
    per_minute: float | None = None


class Ranker(Protocol):
    """Ranks groups in the background."""

    def takes_latents(self) -> bool:
        """Whether any reward may be sent latents in place of images: none has said so, or not all have refused."""

    def submit(self, group: CandidateGroup) -> None:
        """Send a group to every reward of the job and return at once."""

    def collect(self, timeout_s: float) -> RankedGroup | None:
        """The next finished group, in whichever order answers come; None when none came within `timeout_s` seconds.

        A group finishes when every reward has answered or failed by its policy. Raises RewardUnavailable when a
        required reward is past its deadline.
        """

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        """By reward, for each that has answered 202 since this ranker was made."""

    def list_unanswered(self) -> Mapping[str, Mapping[str, float]]:
        """By reward, the groups that wait for its answer, also pending ones, and for how many s each has."""

    def change_rewards(self, rewards: Sequence[RewardSpec]) -> None:
        """The same rewards with other weights: whether one is required, or only watched, follows from them."""

    def cancel(self, *, withdraw: bool = False) -> None:
        """Forget every group in flight. `withdraw` also tells endpoints that nobody waits for what is pending there;
        without, whoever submits the same group again gets the ranking that is under way.
        """

    def close(self) -> None:
        """Cancel, and give back connections and threads. It is not used again."""
