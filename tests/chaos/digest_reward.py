"""A reward whose every score can be checked afterwards: it is a hash of the pixels, which the ledger has hashes of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import JsonValue

from dipole_rewards.reward import Golden, Pixels, Reward, Scores


def score_of_digest(digest: str) -> float:
    """The score, in [0, 1), of an image whose pixels have this SHA-256, in hexadecimal."""
    return int(digest[:12], 16) / 16**12


def digest_of(image: Pixels) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


class DigestReward(Reward):
    """Noise to whoever trains on it, and the same noise each time it is asked."""

    name = "digest"
    model = "sha256"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        return Scores([score_of_digest(digest_of(np.ascontiguousarray(image))) for image in images])

    def golden(self) -> Golden:
        image = np.zeros((4, 4, 3), np.uint8)
        return Golden(prompt="", image=image, score=score_of_digest(digest_of(image)), tolerance=1e-12)
