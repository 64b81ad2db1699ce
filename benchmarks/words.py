"""A second tiny world: short words, and a program that reads them.

It is here so that a result of alignment.py does not hang on the scenes of `tiny-turbo`, whose things stand in the four
quadrants that the encoder's grid has too. A word is two or three letters in a row, moved freely, so that letters lie
across that grid. The reward (`Words`) reads letters and their colour from pixels alone.

Legend: B images, M letters an image.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy import ndimage

from dipole.tiny.world import BACKGROUND, COLOURS, SIZE
from dipole_rewards.reward import Golden, Pixels, Reward, Scores

Point = tuple[float, float]
# strokes from point to point, in a box of 1 × 1, v downwards
LETTERS: dict[str, list[tuple[Point, Point]]] = {
    "a": [((0, 1), (0.5, 0)), ((0.5, 0), (1, 1)), ((0.22, 0.62), (0.78, 0.62))],
    "e": [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 0.5), (0.8, 0.5)), ((0, 1), (1, 1))],
    "l": [((0, 0), (0, 1)), ((0, 1), (1, 1))],
    "t": [((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))],
    "x": [((0, 0), (1, 1)), ((0, 1), (1, 0))],
    "z": [((0, 0), (1, 0)), ((1, 0), (0, 1)), ((0, 1), (1, 1))],
}
ALPHABET = tuple(LETTERS)
MAX_LETTERS = 3
NO_LETTER = -1
WIDTH, HEIGHT, STROKE, PITCH = 11.0, 15.0, 3.2, 18.0  # pixels; PITCH from a letter's centre to the next one's
TAGS = ("two", "three", "coloured")
SPLIT_SALT = "words-0"  # the first that was tried

MIN_SATURATION = 60  # as in `shapes`
MIN_PIXELS = 12
MIN_OVERLAP = 0.55  # with a letter's template, from which it is read as that letter
MAX_COLOUR_DISTANCE = 90.0
TEMPLATE = (24, 18)  # rows, columns
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float64)


# ---- the language ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordPrompt:
    """A prompt and what it asks for; `colour` is None where it names none."""

    letters: str
    colour: str | None
    held_out: bool

    @property
    def text(self) -> str:
        spelt = " ".join(self.letters)
        return f"the letters {spelt} in {self.colour}" if self.colour else f"the letters {spelt}"

    @property
    def tag(self) -> str:
        return "coloured" if self.colour else {2: "two", 3: "three"}[len(self.letters)]

    @property
    def metadata(self) -> dict[str, Any]:
        return {"tag": self.tag, "letters": self.letters, **({"color": self.colour} if self.colour else {})}


def all_prompts(*, held_out: bool | None = None) -> list[WordPrompt]:
    """All 468 prompts in a fixed order, or only the held-out or the training ones: every third word is held out."""
    found = [WordPrompt(letters, colour, _is_held_out(letters, colour)) for letters, colour in _generate_words()]
    return [prompt for prompt in found if held_out is None or prompt.held_out == held_out]


def _generate_words() -> Iterator[tuple[str, str | None]]:
    pairs = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=2)]
    yield from ((letters, None) for letters in pairs)
    yield from (("".join(letters), None) for letters in itertools.product(ALPHABET, repeat=3))
    yield from itertools.product(pairs, COLOURS)


def _is_held_out(letters: str, colour: str | None) -> bool:
    return hashlib.sha256(f"{SPLIT_SALT} {letters} {colour}".encode()).digest()[0] % 3 == 0


# ---- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordBatch:
    """B words of up to M letters, each of one colour. `letter` indexes ALPHABET, or is NO_LETTER after the word's end.

    `x`, `y` are the word's centre in pixels, `size` a factor of its letters' size.
    """

    letter: NDArray[np.int64]  # (B, M)
    colour: NDArray[np.int64]  # (B,)
    x: NDArray[np.float32]  # (B,)
    y: NDArray[np.float32]  # (B,)
    size: NDArray[np.float32]  # (B,)


def render_words(words: WordBatch) -> NDArray[np.uint8]:
    """Images, uint8 (B, SIZE, SIZE, 3) RGB, anti-aliased."""
    count, most = words.letter.shape
    canvas = np.empty((count, SIZE, SIZE, 3), np.float32)
    canvas[:] = BACKGROUND
    palette = np.array(list(COLOURS.values()), np.float32)
    length = (words.letter != NO_LETTER).sum(1)
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    for m in range(most):
        centre = words.x + (m - (length - 1) / 2) * PITCH
        for index, name in enumerate(ALPHABET):
            rows = np.flatnonzero(words.letter[:, m] == index)
            if not rows.size:
                continue
            size = words.size[rows, None, None]
            u = (grid[None, None, :] - centre[rows, None, None]) / (WIDTH * size) + 0.5
            v = (grid[None, :, None] - words.y[rows, None, None]) / (HEIGHT * size) + 0.5
            cover = np.clip(0.5 - stroke_distance(name, u, v, size), 0, 1)[..., None]
            canvas[rows] += cover * (palette[words.colour[rows]][:, None, None] - canvas[rows])
    return np.round(canvas).astype(np.uint8)


def stroke_distance(letter: str, u: Any, v: Any, size: Any) -> Any:
    """How far points (u, v) of a letter's box lie outside its strokes, in pixels, negative inside; (B, H, W)."""
    found: Any = np.inf
    for (u0, v0), (u1, v1) in LETTERS[letter]:
        along_u, along_v = (u1 - u0) * WIDTH, (v1 - v0) * HEIGHT
        from_u, from_v = (u - u0) * WIDTH, (v - v0) * HEIGHT
        share = np.clip((from_u * along_u + from_v * along_v) / (along_u**2 + along_v**2), 0, 1)
        found = np.minimum(found, np.hypot(from_u - share * along_u, from_v - share * along_v))
    return found * size - STROKE / 2


# ---- the reader -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenLetter:
    """One connected thing, read from left to right: overlap (0..1) with each letter, RGB distance to each colour."""

    overlaps: Mapping[str, float]
    colours: Mapping[str, float]

    def reads_as(self, letter: str, colour: str | None) -> bool:
        seen = max(self.overlaps, key=self.overlaps.__getitem__)
        nearest = min(self.colours, key=self.colours.__getitem__)
        named = colour or nearest
        return (
            seen == letter
            and self.overlaps[letter] >= MIN_OVERLAP
            and (nearest == named and self.colours[named] <= MAX_COLOUR_DISTANCE)
        )

    def likeness_to(self, letter: str, colour: str | None) -> float:
        """How nearly it is that letter of that colour, 0..1."""
        distance = self.colours[colour] if colour else min(self.colours.values())
        shape = np.clip((self.overlaps[letter] - 0.3) / 0.5, 0, 1)
        return float(shape * np.clip(1.25 - distance / 120, 0, 1))


def read_letters(image: NDArray[np.uint8]) -> list[SeenLetter]:
    """Every thing in an RGB image (H, W, 3), from left to right. Letters that touch are one thing, and none."""
    labels, _ = ndimage.label(np.ptp(image, axis=2) >= MIN_SATURATION, structure=np.ones((3, 3)))
    found = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == index
        if mask.sum() < MIN_PIXELS:
            continue
        colour = image[window][mask].astype(np.float64)
        colour = colour[np.ptp(colour, axis=1) >= np.median(np.ptp(colour, axis=1))].mean(0)  # not the blurred edges
        distances = np.linalg.norm(PALETTE - colour, axis=1).tolist()
        letter = SeenLetter(_overlaps(mask), dict(zip(COLOUR_NAMES, distances, strict=True)))
        found.append(((window[1].start + window[1].stop) / 2, letter))
    return [letter for _, letter in sorted(found, key=lambda pair: pair[0])]


def _overlaps(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Intersection over union with each letter's template, both stretched to one box; less for odd proportions."""
    rows, columns = TEMPLATE
    stretched = mask[np.ix_(np.arange(rows) * mask.shape[0] // rows, np.arange(columns) * mask.shape[1] // columns)]
    ratio = (mask.shape[0] / mask.shape[1]) / ((HEIGHT + STROKE) / (WIDTH + STROKE))
    fit = min(1.0, 1.4 * min(ratio, 1 / ratio))
    return {
        letter: float(fit * (stretched & template).sum() / (stretched | template).sum())
        for letter, template in templates().items()
    }


@cache
def templates() -> dict[str, NDArray[np.bool_]]:
    """Each letter's strokes in its own bounding box."""
    rows, columns = TEMPLATE
    v = ((np.arange(rows) + 0.5) / rows * (HEIGHT + STROKE) - STROKE / 2)[None, :, None] / HEIGHT
    u = ((np.arange(columns) + 0.5) / columns * (WIDTH + STROKE) - STROKE / 2)[None, None, :] / WIDTH
    return {letter: stroke_distance(letter, u, v, 1.0)[0] <= 0 for letter in ALPHABET}


class Words(Reward):
    """`strict` is 1 where exactly the word stands there, in its colour; `graded` is the mean likeness of its letters,
    letters too many counting as ones that are missing. The score is the mean of both.
    """

    name = "words"
    model = "words-reader"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        asked = metadata or {}
        parts = [score_letters(read_letters(image), str(asked["letters"]), asked.get("color")) for image in images]
        return Scores([sum(part) / 2 for part in parts], sub_scores=[{"strict": s, "graded": g} for s, g in parts])

    def golden(self) -> Golden:
        """`at` where `ax` was asked for: half right, never strictly."""
        image = render_words(batch_of("at", "red"))[0]
        return Golden(prompt="", image=image, score=0.25, metadata={"letters": "ax"})


def score_letters(seen: Sequence[SeenLetter], letters: str, colour: Any) -> tuple[float, float]:
    """`strict` and `graded` of what is read against what was asked for."""
    strict = len(seen) == len(letters) and all(a.reads_as(b, colour) for a, b in zip(seen, letters, strict=True))
    total = sum(thing.likeness_to(letter, colour) for thing, letter in zip(seen, letters, strict=False))
    return float(strict), total / max(len(seen), len(letters))


def batch_of(letters: str, colour: str, *, x: float = SIZE / 2, y: float = SIZE / 2, size: float = 1.0) -> WordBatch:
    """One word, where it is asked for."""
    row = [ALPHABET.index(letter) for letter in letters] + [NO_LETTER] * (MAX_LETTERS - len(letters))
    place = (np.array([value], np.float32) for value in (x, y, size))
    return WordBatch(np.array([row]), np.array([list(COLOURS).index(colour)]), *place)
