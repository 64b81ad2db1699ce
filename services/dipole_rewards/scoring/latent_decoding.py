"""Candidates that came as latents, made into images where the model is: by the thread, on the device, at the time.

A request waits as what it came as, and a group of latents is a twentieth of its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from dipole.errors import ConfigurationError, how_to_install
from dipole.protocol.schemas import ItemError, LatentSpace
from dipole_rewards.reward import CandidateImages, Latents, Pixels, Scores, check_scores, choose_device
from dipole_rewards.settings import RewardSettings

NOT_FINITE = ItemError(code="not_finite", message="its latents are decoded to pixels that are not finite")


class LatentDecoder(Protocol):
    """A VAE's decoder. `space` says whose latents it takes."""

    space: LatentSpace

    def decode(self, latents: Sequence[Latents]) -> tuple[list[Pixels], list[int]]:
        """Images, and the places of those that are not finite, which are black."""
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
    """The group with images, and which of them are void, with the reason. One that came as images stays as it is."""
    latents = cast("Sequence[Latents]", group.images)
    if decoder is None or latents[0].dtype != np.float16:
        return group, {}
    images, flawed = decoder.decode(latents)
    return replace(group, images=images), dict.fromkeys(flawed, NOT_FINITE)


def void_scores(scores: Scores, errors: Mapping[int, ItemError]) -> Scores:
    """The scores without those of void images: null, with the reason."""
    if not errors:
        return scores
    check_scores(scores, len(scores.scores))
    kept = [None if place in errors else score for place, score in enumerate(scores.scores)]
    return replace(scores, scores=kept, errors={**scores.errors, **errors})
