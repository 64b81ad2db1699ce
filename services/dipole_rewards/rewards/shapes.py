"""`shapes`: does the image show what the prompt asks for? A program that reads the tiny world's images alone.

It separates coloured things from the grey background, names each one's colour and shape, and checks them against
GenEval's metadata (REWARDS: geneval): include = all of them, exclude = none of them, positions by their centres.
`strict` is 0 or 1, `graded` in 0..1 moves with every half-right object, and the score is their mean. Things that touch
are one thing to it: scenes of the world keep them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import ndimage

from dipole.protocol.schemas import ItemError
from dipole.tiny.world import COLOURS, SHAPES
from dipole_rewards.geneval.metadata import ObjectVocabulary, read_metadata
from dipole_rewards.reward import Golden, Pixels, Reward, Scores

MIN_SATURATION = 60  # max - min of RGB, from which a pixel belongs to a thing and not to the background
MIN_PIXELS = 24
MIN_SHAPE_OVERLAP = 0.75  # overlap with the shape's outline from which it counts as that shape
MAX_COLOUR_DISTANCE = 75.0  # RGB distance up to which a colour counts as the named one
MIN_OFFSET = 4.0  # pixels by which "left of" must be left
PALETTE = np.array(list(COLOURS.values()), np.float64)
COLOUR_NAMES = tuple(COLOURS)
CROSS_ARM = 0.34  # half an arm's width, of half the cross's, as the world draws it
Floats = NDArray[np.float64]
VOCABULARY = ObjectVocabulary(SHAPES, COLOUR_NAMES, max_count=1000)


@dataclass(frozen=True)
class Outline:
    """A shape in the box of (u, v) from -1 to 1, v downwards, symmetric in u: its pixels' mean of v, and spreads."""

    contains: Callable[[Floats, Floats], NDArray[np.bool_]]
    centre_v: float
    spread_u: float
    spread_v: float


def measure_outline(contains: Callable[[Floats, Floats], NDArray[np.bool_]]) -> Outline:
    grid = (np.arange(400) + 0.5) / 200 - 1
    v, u = np.meshgrid(grid, grid, indexing="ij")
    inside = contains(u, v)
    return Outline(contains, float(v[inside].mean()), float(u[inside].std()), float(v[inside].std()))


OUTLINES = {
    "circle": measure_outline(lambda u, v: u**2 + v**2 <= 1),
    "square": measure_outline(lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 1),
    "triangle": measure_outline(lambda u, v: (np.abs(u) <= (v + 1) / 2) & (v <= 1)),
    "cross": measure_outline(
        lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= CROSS_ARM) & (np.maximum(np.abs(u), np.abs(v)) <= 1)
    ),
}
assert set(OUTLINES) == set(SHAPES)


@dataclass(frozen=True)
class SeenObject:
    """One connected thing: centre in pixels, overlap (0..1) with each shape, RGB distance to each colour."""

    x: float
    y: float
    shapes: Mapping[str, float]
    colours: Mapping[str, float]

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        shape, colour = max(self.shapes, key=self.shapes.__getitem__), min(self.colours, key=self.colours.__getitem__)
        right_shape = shape == wanted["class"] and self.shapes[shape] >= MIN_SHAPE_OVERLAP
        right_colour = self.colours[colour] <= MAX_COLOUR_DISTANCE and colour == wanted.get("color", colour)
        return right_shape and right_colour

    def likeness_to(self, wanted: Mapping[str, Any]) -> float:
        """How nearly it is what is wanted, 0..1."""
        distance = self.colours[wanted["color"]] if "color" in wanted else min(self.colours.values())
        shape = np.clip((self.shapes[wanted["class"]] - 0.5) / 0.4, 0, 1)
        return float(shape * np.clip(1.25 - distance / 120, 0, 1))


def find_objects(image: NDArray[np.uint8]) -> list[SeenObject]:
    """Every thing in an RGB image (H, W, 3)."""
    labels, _ = ndimage.label(np.ptp(image, axis=2) >= MIN_SATURATION)
    things = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == index
        if mask.sum() < MIN_PIXELS:
            continue
        rows, columns = np.nonzero(mask)
        inside = ndimage.binary_erosion(mask)
        colour = image[window][inside if inside.any() else mask].mean(0)
        things.append(
            SeenObject(
                x=float(columns.mean() + window[1].start),
                y=float(rows.mean() + window[0].start),
                shapes=shape_overlaps(mask),
                colours=dict(zip(COLOUR_NAMES, np.linalg.norm(PALETTE - colour, axis=1).tolist(), strict=True)),
            )
        )
    return things


def shape_overlaps(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Intersection over union of a mask with each shape's outline, less for a stretched one.

    The outline is laid where its centre and its spreads are the mask's, and not into the bounding box: blur takes a
    triangle's tips first, and the box that is left fits it no more, while moments hardly move.
    """
    room = 3 + max(mask.shape) // 8  # outlines may reach beyond the mask's box
    mask = np.pad(mask, room)
    rows, columns = np.nonzero(mask)
    y, x = np.meshgrid(*(np.arange(side) for side in mask.shape), indexing="ij")
    spread_x, spread_y = (float(np.sqrt(each.var() + 1 / 12)) for each in (columns, rows))  # 1/12: a pixel's own
    overlaps = {}
    for name, outline in OUTLINES.items():
        half_width, half_height = spread_x / outline.spread_u, spread_y / outline.spread_v
        inside = outline.contains((x - columns.mean()) / half_width, (y - rows.mean()) / half_height + outline.centre_v)
        stretch = min(1.0, 1.3 * min(half_width, half_height) / max(half_width, half_height))
        overlaps[name] = float((mask & inside).sum() / (mask | inside).sum() * stretch)
    return overlaps


def score_objects(things: Sequence[SeenObject], metadata: Mapping[str, Any]) -> tuple[float, float]:
    """`strict` and `graded` of what is seen against what was asked for."""
    return score_objects_strictly(things, metadata), mean_likeness(things, metadata)


def score_objects_strictly(things: Sequence[SeenObject], metadata: Mapping[str, Any]) -> float:
    groups = [[thing for thing in things if thing.matches(wanted)] for wanted in metadata["include"]]
    enough = all(len(group) >= wanted["count"] for group, wanted in zip(groups, metadata["include"], strict=True))
    placed = all(
        any(
            offset_along(a, wanted["position"][0], b) > MIN_OFFSET for a in group for b in groups[wanted["position"][1]]
        )
        for group, wanted in zip(groups, metadata["include"], strict=True)
        if "position" in wanted
    )
    forbidden = any(
        sum(thing.matches(unwanted) for thing in things) >= unwanted["count"]
        for unwanted in metadata.get("exclude", ())
    )
    return float(enough and placed and not forbidden)


def mean_likeness(things: Sequence[SeenObject], metadata: Mapping[str, Any]) -> float:
    """Mean likeness over what was asked for; an object too many counts as one that is missing."""
    left = list(things)
    total, wanted_count, best = 0.0, 0, []
    for wanted in metadata["include"]:
        found = sorted(left, key=lambda thing: -thing.likeness_to(wanted))[: wanted["count"]]
        left = [thing for thing in left if thing not in found]
        total += sum(thing.likeness_to(wanted) for thing in found)
        wanted_count += wanted["count"]
        best.append(found[0] if found else None)
    value = total / max(wanted_count, len(things))
    for wanted, thing in zip(metadata["include"], best, strict=True):
        other = best[wanted["position"][1]] if "position" in wanted else None
        if thing and other:
            value *= 0.5 + 0.5 * float(np.clip(0.5 + offset_along(thing, wanted["position"][0], other) / 24, 0, 1))
    return value


def offset_along(a: SeenObject, relation: str, b: SeenObject) -> float:
    """By how many pixels `a` stands where the relation says, negative when it does not."""
    return {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]


class Shapes(Reward):
    """Verifiable reward of the tiny world; needs the prompt's metadata, as GenEval does."""

    name = "shapes"
    deterministic = True
    model = "tiny-world-checker"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        asked = read_metadata(metadata, VOCABULARY, reward=self.name)
        if isinstance(asked, ItemError):
            return Scores([None] * len(images), errors=dict.fromkeys(range(len(images)), asked))
        wanted = asked.model_dump(by_alias=True, exclude_none=True)
        parts = [score_objects(find_objects(image), wanted) for image in images]
        return Scores([sum(part) / 2 for part in parts], sub_scores=[{"strict": s, "graded": g} for s, g in parts])

    def golden(self) -> Golden:
        """A red square beside a blue one where a red square and a circle were asked for: half right, never strictly."""
        image = np.full((32, 64, 3), 235, np.uint8)
        image[8:24, 8:24], image[8:24, 40:56] = COLOURS["red"], COLOURS["blue"]
        include: list[JsonValue] = [
            {"class": "square", "color": "red", "count": 1},
            {"class": "circle", "color": "green", "count": 1},
        ]
        return Golden(prompt="", image=image, score=0.25, metadata={"tag": "color_attr", "include": include})
