"""Evaluation on fixed prompts and noises: every reward, trained and held-out, with intervals and diversity.

The same noises serve every step, so that two evaluations differ by the weights alone and are compared prompt by
prompt. Rewards are asked through the job's own ranker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dipole.errors import NotFinite
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.evaluation.results import ScoredPrompt
from dipole_trainer.features import FeatureExtractor, extract_features
from dipole_trainer.generators.images.candidate_images import DecodedCandidates
from dipole_trainer.generators.images.vae import finite_rows
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, Ranker
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import EvalSpec

MAX_BATCH_IMAGES = 32  # images generated at once, before their groups are submitted
MAX_GROUPS_IN_FLIGHT = 16  # groups sent and not answered, so that images do not pile up in Redis
SHEET_PROMPTS = 12


def score_prompts(
    spec: EvalSpec,
    generator: OneStepGenerator,
    features: FeatureExtractor,
    ranker: Ranker,
    *,
    step: int,
    job_id: str,
    micro_batches: MicroBatches | None = None,
    is_ours: Callable[[int], bool] = lambda index: True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_ranked: Callable[[RankedGroup], None] = lambda ranked: None,
    on_other: Callable[[RankedGroup], None] = lambda ranked: None,
    asked: frozenset[str] | None = None,
    latents: Literal["beside", "alone"] | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[list[ScoredPrompt], list[NDArray[np.uint8]]]:
    """Score `images_per_prompt` images of each prompt; returns results and images, in the order of the prompts.

    `micro_batches` says how many samples are worked on at once, at first MAX_BATCH_IMAGES where it is absent.
    `latents` says that rewards may be sent those beside images, or those alone.
    `is_ours` says of a prompt's index whether it is evaluated here. `asked` names the rewards, None all. `on_other`
    gets the answers for groups that the ranker was given by others. `check_stop` is called at least every second while
    answers are waited for; what it raises ends the evaluation.
    """
    micro_batches = micro_batches or MicroBatches(MAX_BATCH_IMAGES)
    waiting: dict[str, tuple[int, float | None, float | None]] = {}
    scored: dict[int, ScoredPrompt] = {}
    sheets: list[NDArray[np.uint8]] = []
    indices = [index for index in range(len(spec.prompts)) if is_ours(index)]

    def take_answer(ranked: RankedGroup) -> None:
        if ranked.group_id not in waiting:
            on_other(ranked)
            return
        on_ranked(ranked)
        index, *diversity = waiting.pop(ranked.group_id)
        prompt = spec.prompts[index]
        scored[index] = ScoredPrompt(
            prompt.prompt, str((prompt.metadata or {}).get("tag", "")), _flatten_scores(ranked), *diversity
        )
        on_progress(len(scored), len(indices))

    for index, group, x in _draw_groups(spec, generator, indices, step, job_id, micro_batches):
        phi = _finite_features(features, group, x, micro_batches)
        waiting[group.id] = (index, mean_pairwise_distance(phi), vendi_score(phi))
        if latents is not None:
            packed, sound = generator.pack_latents(x)
            unsound = {row: "not_finite: latents in float16" for row, fine in enumerate(sound) if not fine}
            group = replace(
                group, latents=packed, vae=generator.vae_fingerprint, latents_alone=latents == "alone",
                flaws={**unsound, **group.flaws},
            )  # fmt: skip
        ranker.submit(replace(group, asked=asked))
        if index < SHEET_PROMPTS:
            sheets.append(np.asarray(group.images))
        while len(waiting) >= MAX_GROUPS_IN_FLIGHT:
            _collect_answers(ranker, take_answer, check_stop)
    while waiting:
        _collect_answers(ranker, take_answer, check_stop)
    return [scored[index] for index in indices], sheets


@torch.no_grad()
def _draw_groups(
    spec: EvalSpec,
    generator: OneStepGenerator,
    indices: Sequence[int],
    step: int,
    job_id: str,
    micro_batches: MicroBatches,
) -> Iterator[tuple[int, CandidateGroup, torch.Tensor]]:
    """Each of these prompts' index, group and latents, generated several prompts at a time."""
    count = spec.images_per_prompt
    together = max(1, MAX_BATCH_IMAGES // count)
    for first in range(0, len(indices), together):
        here = indices[first : first + together]
        seeds = [derive_seeds(spec.seed, "evaluation", index, count=count) for index in here]
        noise = generator.draw_noise([seed for drawn in seeds for seed in drawn])
        texts = [spec.prompts[index].prompt for index in here for _ in range(count)]
        latents, images, flaws = _sample_images(generator, noise, texts, micro_batches)
        for i, index in enumerate(here):
            rows, prompt = slice(i * count, (i + 1) * count), spec.prompts[index]
            name = f"{job_id}.eval{step}.{index}"
            here_flaws = {row - rows.start: why for row, why in flaws.items() if rows.start <= row < rows.stop}
            yield (
                index,
                CandidateGroup(name, step, prompt.prompt, prompt.metadata, images[rows], seeds[i], here_flaws),
                latents[rows],
            )


def _sample_images(
    generator: OneStepGenerator, noise: torch.Tensor, prompts: Sequence[str], micro_batches: MicroBatches
) -> tuple[torch.Tensor, NDArray[np.uint8], dict[int, str]]:
    """Latents, images, and why there is no image by row; as many at once as memory allows. Raises NotFinite where
    there is none at all.
    """

    def sample_rows(rows: list[int]) -> tuple[torch.Tensor, DecodedCandidates]:
        latents = generator(noise[rows], [prompts[row] for row in rows])
        return latents, DecodedCandidates.of_pixels(generator.decode_pixels(latents), latents)

    latents, decoded = zip(*micro_batches.map(range(len(noise)), sample_rows), strict=True)
    images, flaws = generator.read_candidates(decoded)
    if len(flaws) == len(images):
        raise NotFinite(generator.describe_flaws(flaws, len(images)))
    return torch.cat(latents), images, flaws


@torch.no_grad()
def _finite_features(
    features: FeatureExtractor, group: CandidateGroup, x: torch.Tensor, micro_batches: MicroBatches
) -> dict[str, torch.Tensor]:
    """φ of the group's images, without those that have none."""
    rows = [row for row in range(len(x)) if row not in group.flaws]
    if not rows:
        return {}
    seeds = [group.seeds[row] for row in rows]
    phi = extract_features(features, x[rows], micro_batches, prompt=group.prompt, seeds=seeds)
    sound = finite_rows(*phi.values())
    return {key: value[sound] for key, value in phi.items()}


def _collect_answers(
    ranker: Ranker, take_answer: Callable[[RankedGroup], None], check_stop: Callable[[], None]
) -> None:
    check_stop()
    ranked = ranker.collect(timeout_s=1.0)
    if ranked is not None:
        take_answer(ranked)


def mean_pairwise_distance(phi: Mapping[str, torch.Tensor]) -> float | None:
    """Mean distance between samples, averaged over keys; {key: (K, T, D)}. None for a single sample."""
    distances = [torch.pdist(value.flatten(1).float()).mean().item() for value in phi.values() if len(value) > 1]
    return float(np.mean(distances)) if distances else None


def vendi_score(phi: Mapping[str, torch.Tensor]) -> float | None:
    """The Vendi score of K samples: exp of the entropy of the eigenvalues of kernel/K; {key: (K, T, D)}.

    K identical samples have 1, K mutually orthogonal ones K (Friedman and Dieng, arXiv 2210.02410). The kernel is the
    cosine, averaged over keys, so that each counts the same. None for a single sample.
    """
    units = [functional.normalize(value.flatten(1).cpu().double()) for value in phi.values()]
    count = len(units[0]) if units else 0
    if count < 2:
        return None
    kernel = torch.stack([unit @ unit.T for unit in units]).mean(0).fill_diagonal_(1)
    shares = torch.linalg.eigvalsh(kernel / count).clamp(min=0)  # of the whole: they sum to 1
    return float(torch.special.entr(shares).sum().exp())


def _flatten_scores(ranked: RankedGroup) -> dict[str, Sequence[float | None]]:
    """Scores and sub-scores by name; ranks alone are left out, as they compare with no other evaluation's."""
    return {
        name: values
        for reward, result in ranked.results.items()
        for name, values in (
            *(() if result.ordinal else ((reward, result.scores),)),
            *((f"{reward}.{part}", v) for part, v in result.sub_scores.items()),
        )
    }
