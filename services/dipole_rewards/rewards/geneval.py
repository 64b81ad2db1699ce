"""`geneval`: does the image show the objects that its prompt asks for, as many, in these colours, in these places?

GenEval (arXiv 2310.11513) looks for them with a detector and asks CLIP for colours: geneval/scoring.py has the rules,
geneval/detector.py and geneval/colours.py the networks, and each says where it departs. The detector is not the one
that GenEval publishes: it has the same architecture, and weights of another training. So scores are for training and
for comparing models with each other; they are not GenEval's, and do not belong beside published ones.

What is asked for comes with the prompt, as metadata; without it, or where it names what no detector of COCO knows,
there is no score but the reason.

The score is the mean of `strict`, GenEval's 0 or 1, and `graded`, which moves with every object that is half right;
both are its sub-scores. DIPOLE_REWARD_WEIGHTS names a folder; what lies in the two folders within may lie in the local
Hugging Face cache instead.

    detector/model.safetensors, config.json         of facebook/mask2former-swin-small-coco-instance
    clip/model.safetensors, config.json, tokenizer.json   of openai/clip-vit-large-patch14
    golden.json     where it is known, {"score": …}: what these weights give make_golden_sign(), a drawing, where a red
                    stop sign is asked for: 1 if GenEval's evaluate_images.py calls it correct

DIPOLE_REWARD_DTYPE is CLIP's: GenEval computes in fp32, and bf16 may decide otherwise between two likely colours. The
detector is always float32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn

from dipole.protocol.schemas import ItemError
from dipole_rewards.geneval.colours import ColourClassifier, crop_object
from dipole_rewards.geneval.detector import ObjectDetector, load_detector, padded_shape
from dipole_rewards.geneval.metadata import GenEvalMetadata, read_metadata
from dipole_rewards.geneval.scoring import (
    VOCABULARY,
    objects_to_colour,
    requested_classes,
    score_gradually,
    score_strictly,
)
from dipole_rewards.networks.batches import MAX_ASPECT, TOO_THIN, MicroBatches
from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.golden_scores import GoldenScore, weights_revision
from dipole_rewards.networks.weight_files import WeightedReward, WeightsFolder, read_safetensors
from dipole_rewards.reward import BatchedReward, CandidateImages, Golden, Pixels, Scores
from dipole_rewards.settings import WeightSettings

DETECTOR_REPOSITORY, CLIP_REPOSITORY = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
BATCH_IMAGES = 16  # images: the detector keeps the masks of each of its layers


@dataclass(frozen=True)
class ImageTask:
    """An image and what is asked of it."""

    image: Pixels
    requested: GenEvalMetadata


class GenEval(BatchedReward, WeightedReward):
    """Images of several prompts share forward passes where they are of one size."""

    name = "geneval"
    model = DETECTOR_REPOSITORY
    tolerance = 0.02

    def __init__(
        self, detector: ObjectDetector, colourist: ColourClassifier, golden: GoldenScore | None, revision: str
    ) -> None:
        self.detector, self.colour_classifier, self.golden_score, self.model_revision = (
            detector,
            colourist,
            golden,
            revision,
        )
        self.micro_batches = MicroBatches(self.name, batch=BATCH_IMAGES)

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        detector_folder, clip = (replace(folder, path=folder.path / name) for name in ("detector", "clip"))
        detector, shape = (
            detector_folder.find_file(name, DETECTOR_REPOSITORY) for name in ("model.safetensors", "config.json")
        )
        weights, config, tokenizer = (
            clip.find_file(name, CLIP_REPOSITORY) for name in ("model.safetensors", "config.json", "tokenizer.json")
        )
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        state = read_safetensors(weights)
        encoder = load_encoder(state, settings, device, weights=weights, config=config, tokenizer=tokenizer)
        seeing = load_detector(detector, shape, device)
        return cls(seeing, ColourClassifier(encoder), golden, weights_revision(detector, weights))

    def networks(self) -> Sequence[nn.Module]:
        return [self.detector.network, self.colour_classifier.encoder.network]

    @torch.inference_mode()
    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        tasks: dict[tuple[int, int], ImageTask] = {}  # by group and image
        errors: list[dict[int, ItemError]] = []
        for number, group in enumerate(groups):
            asked = read_metadata(group.metadata, VOCABULARY, reward=self.name)
            errors.append({})
            for index, image in enumerate(group.images):
                if isinstance(asked, ItemError):
                    errors[-1][index] = asked
                elif max(image.shape[:2]) > MAX_ASPECT * min(image.shape[:2]):
                    errors[-1][index] = TOO_THIN
                else:
                    tasks[number, index] = ImageTask(image, asked)
        judged = self._score_tasks(tasks)
        return [
            _combine_scores([judged.get((number, index)) for index in range(len(group.images))], errors[number])
            for number, group in enumerate(groups)
        ]

    def golden(self) -> Golden:
        red: list[JsonValue] = [{"class": "stop sign", "count": 1, "color": "red"}]
        asked: dict[str, JsonValue] = {"tag": "colors", "include": red}
        sign = make_golden_sign()
        return replace(super().golden(), prompt="a photo of a red stop sign", image=sign, metadata=asked)

    def _score_tasks(self, tasks: Mapping[tuple[int, int], ImageTask]) -> dict[tuple[int, int], tuple[float, float]]:
        """Strict and graded by group and image; images of one size go through the networks together."""
        sizes = defaultdict(list)
        for key, task in tasks.items():
            sizes[padded_shape(*task.image.shape[:2])].append(key)
        judged: dict[tuple[int, int], tuple[float, float]] = {}
        for keys in sizes.values():
            judged |= zip(keys, self.micro_batches([tasks[key] for key in keys], self._score_batch), strict=True)
        return judged

    def _score_batch(self, tasks: Sequence[ImageTask]) -> list[tuple[float, float]]:
        """Strict and graded of images of one size; NaN where the detector failed."""
        seen = self.detector([task.image for task in tasks], [requested_classes(task.requested) for task in tasks])
        objects = [
            (task.image, one)
            for task, found in zip(tasks, seen, strict=True)
            for one in objects_to_colour(found or (), task.requested)
        ]
        told = self.colour_classifier([(crop_object(image, one), one.kind) for image, one in objects])
        colours = {id(one): its for (_, one), its in zip(objects, told, strict=True)}
        parts = []
        for task, found in zip(tasks, seen, strict=True):
            coloured = [replace(one, colours=colours.get(id(one), {})) for one in found or ()]
            judged = score_strictly(coloured, task.requested), score_gradually(coloured, task.requested)
            parts.append((math.nan, math.nan) if found is None else judged)
        return parts


def _combine_scores(parts: Sequence[tuple[float, float] | None], errors: Mapping[int, ItemError]) -> Scores:
    return Scores(
        [None if part is None else sum(part) / 2 for part in parts],
        sub_scores=[None if part is None else {"strict": part[0], "graded": part[1]} for part in parts],
        errors=errors,
    )


def make_golden_sign() -> Pixels:
    """A red octagon with a white rim before a sky, 192×256; were red and blue exchanged, it would be blue."""
    image = np.empty((192, 256, 3), np.uint8)
    image[...] = (120, 160, 210)
    image[150:] = (90, 120, 70)
    image[96:, 124:132] = (110, 110, 110)  # the pole
    y, x = np.abs(np.mgrid[:192, :256] - np.array([80, 128])[:, None, None])
    for size, colour in ((64, (245, 245, 245)), (58, (190, 20, 30))):
        image[(np.maximum(x, y) <= size) & (x + y <= size * 2**0.5)] = colour
    return image
