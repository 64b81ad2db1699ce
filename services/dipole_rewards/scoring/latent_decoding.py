"""Candidates that came as latents, made into images where the model is: by the thread, on the device, at the time.

A request waits as what it came as, and a group of latents is a twentieth of its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np

from dipole.errors import ConfigurationError, how_to_install
from dipole.protocol.schemas import ItemError, LatentSpace
from dipole_rewards.reward import CandidateImages, Latents, MovableNetwork, Pixels, Scores, check_scores, choose_device
from dipole_rewards.settings import RewardSettings

T = TypeVar("T")
NOT_FINITE = ItemError(code="not_finite", message="its latents are decoded to pixels that are not finite")


class LatentDecoder(Protocol):
    """A VAE's decoder. `space` says whose latents it takes."""

    space: LatentSpace

    def decode(self, latents: Sequence[Latents]) -> tuple[list[Pixels], list[int]]:
        """Images, and the places of those that are not finite, which are black."""
        ...

    def networks(self) -> Sequence[MovableNetwork]:
        """What can sleep with the reward's own."""
        ...


def load_decoder(settings: RewardSettings) -> LatentDecoder | None:
    """The decoder that DIPOLE_REWARD_VAE names. Raises ConfigurationError where it cannot be had."""
    if settings.reward_vae is None:
        return None
    try:
        from dipole_rewards.scoring.vae_decoder import VaeDecoder
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"DIPOLE_REWARD_VAE is given, but {error.name} is not installed: {how_to_install('clip')}, or leave it out"
        ) from error
    folder, device = Path(settings.reward_vae), choose_device(settings.reward_device)
    return VaeDecoder.load(folder, settings.reward_vae_dtype, device)


def decode_group(
    decoder: LatentDecoder | None, group: CandidateImages
) -> tuple[CandidateImages, Mapping[int, ItemError]]:
    """The group with the images that it has, and of which candidates there is none, with the reason: those are not
    asked about. One that came as images stays as it is.
    """
    latents = cast("Sequence[Latents]", group.images)
    if decoder is None or latents[0].dtype != np.float16:
        return group, {}
    images, flawed = decoder.decode(latents)
    sound = [each for place, each in enumerate(images) if place not in flawed]
    return replace(group, images=sound), dict.fromkeys(flawed, NOT_FINITE)


def with_void_candidates(scores: Scores, errors: Mapping[int, ItemError]) -> Scores:
    """The scores of all candidates, of those of the ones that have an image: null for the others, with the reason."""
    if not errors:
        return scores
    places = [place for place in range(len(scores.scores) + len(errors)) if place not in errors]
    check_scores(scores, len(places))

    def spread(values: Sequence[T] | None) -> list[T | None] | None:
        found = dict(zip(places, values, strict=True)) if values is not None else None
        return None if found is None else [found.get(place) for place in range(len(places) + len(errors))]

    return replace(
        scores,
        scores=spread(scores.scores) or [],
        sub_scores=spread(scores.sub_scores),
        tiers=spread(scores.tiers),
        errors={**{places[at]: error for at, error in scores.errors.items()}, **errors},
    )
