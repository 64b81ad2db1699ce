"""GenEval's judgement: objects that were found in an image, against what its prompt asked for. No pixels, no networks.

The rules are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513; djghosh13/geneval), which are easily misremembered:
- An object counts from a confidence above 0.3, above 0.9 where the tag is "counting", and at most 16 of a class count.
  Overlapping objects of one class are all kept: nothing is suppressed.
- `include` asks for at least `count` objects. Counting is exact only because GenEval's prompts for it also exclude
  `count + 1`; where metadata says no such thing, more are as good.
- Colours and positions are judged by the `count` most confident objects alone: where a blue car is more confident than
  a red one, "one red car" is wrong.
- A position must hold between each of these and each of the thing's that it is relative to. Box centres, made closer by
  0.1 of both boxes' sides, must lie apart in that direction by more than half of the centres' distance, so that
  something may be left of and above at once.
- Things of one class are looked for among the same objects: "a red and a blue car" is never right.
- `exclude` goes by the class alone, its colours and positions say nothing, and any one of it spoils the image.

What differs here: a position may refer to a thing that is named later; a count above 16, which could never be met, is
refused; and there is `graded`, because a group whose images all score 0 has no order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from dipole_rewards.geneval.metadata import GenEvalMetadata, ObjectVocabulary, RequestedObject

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
CLASSES = (  # of COCO, in its order, with GenEval's names: COCO's mouse, remote and keyboard are called otherwise
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
MAX_COUNT = 16  # objects of a class
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
POSITION_MARGIN = 0.1  # of the sides of both boxes
MIN_GRADED_SEPARATION = 0.5  # of the distance between two centres
VOCABULARY = ObjectVocabulary(CLASSES, COLOURS, max_count=MAX_COUNT)
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class FoundObject:
    """An object in an image: its class, the detector's confidence, its box in pixels, and how it looks.

    `colours` says of each colour how likely it is, the likeliest being 1; it is empty where nobody asks for one.
    """

    kind: str
    score: float
    box: tuple[float, float, float, float]  # left, top, right, bottom
    colours: Mapping[str, float] = field(default_factory=dict)

    def has_colour(self, colour: str) -> bool:
        return max(self.colours, key=self.colours.__getitem__) == colour


FoundT = TypeVar("FoundT", bound=FoundObject)


def most_confident(found: Sequence[FoundT], kind: str, count: int) -> list[FoundT]:
    """The `count` most confident objects of a class, whatever their confidence; the best first, in any order given."""
    return sorted((one for one in found if one.kind == kind), key=lambda one: (-one.score, one.box))[:count]


def requested_classes(asked: GenEvalMetadata) -> set[str]:
    """The classes that matter."""
    return {wanted.kind for wanted in (*asked.include, *asked.exclude)}


def objects_to_colour(found: Sequence[FoundT], asked: GenEvalMetadata) -> list[FoundT]:
    """The objects whose colour matters."""
    chosen = [one for each in asked.include if each.color for one in most_confident(found, each.kind, each.count)]
    return list({id(one): one for one in chosen}.values())


def confidence_threshold(asked: GenEvalMetadata) -> float:
    return COUNTING_THRESHOLD if asked.tag == "counting" else THRESHOLD


def score_strictly(found: Sequence[FoundObject], asked: GenEvalMetadata) -> float:
    """1 where everything is as asked, else 0."""
    seen = [one for one in found if one.score > confidence_threshold(asked)]
    groups = [most_confident(seen, wanted.kind, wanted.count) for wanted in asked.include]
    right = all(_is_as_requested(group, wanted, groups) for group, wanted in zip(groups, asked.include, strict=True))
    spoilt = any(len(most_confident(seen, unwanted.kind, MAX_COUNT)) >= unwanted.count for unwanted in asked.exclude)
    return float(right and not spoilt)


def _is_as_requested(
    group: Sequence[FoundObject], wanted: RequestedObject, groups: Sequence[Sequence[FoundObject]]
) -> bool:
    if len(group) < wanted.count:
        return False
    if wanted.color is not None and not all(one.has_colour(wanted.color) for one in group):
        return False
    if wanted.position is None:
        return True
    relation, other = wanted.position
    return all(separation_along(a, b, relation) > MIN_GRADED_SEPARATION for a in group for b in groups[other])


def score_gradually(found: Sequence[FoundObject], asked: GenEvalMetadata) -> float:
    """How nearly everything is as asked, 0…1; what is strictly right gets 1.

    The mean over what is included, less for what is excluded: with `count` allowed less one and n found, count/(n + 1).
    """
    limit = confidence_threshold(asked)
    groups = [most_confident(found, wanted.kind, wanted.count) for wanted in asked.include]
    parts = [_grade_object(group, wanted, groups, asked) for group, wanted in zip(groups, asked.include, strict=True)]
    value = sum(parts) / len(parts)
    for unwanted in asked.exclude:
        number = sum(one.score > limit for one in most_confident(found, unwanted.kind, MAX_COUNT))
        value *= min(1.0, unwanted.count / (number + 1))
    return value


def _grade_object(
    group: Sequence[FoundObject],
    wanted: RequestedObject,
    groups: Sequence[Sequence[FoundObject]],
    asked: GenEvalMetadata,
) -> float:
    """The mean of presence, colour and place, of those that are asked for.

    An object below the threshold is there in part, and then its colour and place are right in part.
    """

    def presence_of(one: FoundObject) -> float:
        return min(1.0, one.score / confidence_threshold(asked))

    aspects = [sum(presence_of(one) for one in group) / wanted.count]
    if wanted.color is not None:
        aspects.append(sum(presence_of(one) * one.colours[wanted.color] for one in group) / wanted.count)
    if wanted.position is not None:
        relation, other = wanted.position
        places = [
            min(presence_of(a), presence_of(b))
            * min(1.0, max(0.0, MIN_GRADED_SEPARATION + separation_along(a, b, relation)))
            for a in group
            for b in groups[other]
        ]
        aspects.append(sum(places) / (wanted.count * asked.include[other].count))
    return sum(aspects) / len(aspects)


def separation_along(a: FoundObject, b: FoundObject, relation: str) -> float:
    """How far `a` lies from `b` in the relation's direction, -1…1 of the distance between their centres."""
    boxes = np.array([a.box, b.box], np.float64).reshape(2, 2, 2)  # box, corner, axis
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sides = np.abs(boxes[:, 1] - boxes[:, 0]).sum(0)
    left = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_MARGIN * sides, 0)
    if (np.abs(left) < 1e-3).all():
        return 0.0
    return float(left @ DIRECTIONS[relation] / np.linalg.norm(offset))
