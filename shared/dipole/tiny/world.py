"""The tiny world's language: shapes, colours, and every prompt with what it asks for.

The prompts follow GenEval's six categories (Ghosh et al. 2023, arXiv 2310.11513) and carry its metadata, so that what
is learned here about rewards with metadata holds for the real one. A prompt and its mirror image ("a red circle and a
blue square", "a blue square and a red circle") ask for the same scene and always fall on the same side of the split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {  # RGB, in order of hue
    "red": (220, 40, 40),
    "yellow": (235, 200, 30),
    "green": (40, 170, 60),
    "cyan": (40, 190, 210),
    "blue": (40, 70, 220),
    "magenta": (200, 50, 200),
}
BACKGROUND = (235, 235, 235)
SIZE = 64  # pixels a side
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
MIRRORED = {"right of": "left of", "below": "above"}
SPLIT_SALT = "tiny-27"  # chosen so that every category has held-out prompts


@dataclass(frozen=True)
class TinyPrompt:
    """A prompt, GenEval's metadata for it, and whether it is kept out of training."""

    text: str
    metadata: dict[str, Any]
    held_out: bool

    @property
    def tag(self) -> str:
        return str(self.metadata["tag"])


def all_prompts(*, held_out: bool | None = None) -> list[TinyPrompt]:
    """All 532 prompts in a fixed order, or only the held-out (True) or the training (False) ones."""
    found = [TinyPrompt(text, metadata, _is_held_out(metadata)) for text, metadata in _generate_prompts()]
    return [prompt for prompt in found if held_out is None or prompt.held_out == held_out]


def _generate_prompts() -> Iterator[tuple[str, dict[str, Any]]]:
    pairs = list(itertools.permutations(SHAPES, 2))
    things = list(itertools.product(COLOURS, SHAPES))
    for shape in SHAPES:
        yield f"a {shape}", {"tag": "single_object", "include": [_describe_object(shape)]}
    for a, b in pairs:
        yield f"a {a} and a {b}", {"tag": "two_object", "include": [_describe_object(a), _describe_object(b)]}
    for (n, word), shape, colour in itertools.product(NUMBERS.items(), SHAPES, (None, *COLOURS)):
        text = f"{word} {colour} {_pluralize(shape)}" if colour else f"{word} {_pluralize(shape)}"
        include, exclude = [_describe_object(shape, colour, n)], [_describe_object(shape, colour, n + 1)]
        yield text, {"tag": "counting", "include": include, "exclude": exclude}
    for colour, shape in things:
        yield f"a {colour} {shape}", {"tag": "colors", "include": [_describe_object(shape, colour)]}
    for (a, b), relation in itertools.product(pairs, RELATIONS):
        placed = {**_describe_object(a), "position": [relation, 1]}
        yield f"a {a} {relation} a {b}", {"tag": "position", "include": [placed, _describe_object(b)]}
    for (ca, a), (cb, b) in itertools.permutations(things, 2):
        if a != b and ca != cb:
            yield (
                f"a {ca} {a} and a {cb} {b}",
                {"tag": "color_attr", "include": [_describe_object(a, ca), _describe_object(b, cb)]},
            )


def _describe_object(shape: str, colour: str | None = None, count: int = 1) -> dict[str, Any]:
    thing: dict[str, Any] = {"class": shape, "count": count}
    return {**thing, "color": colour} if colour else thing


def _pluralize(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def describe_scene(metadata: dict[str, Any]) -> list[Any]:
    """What a prompt asks for, as JSON: the same for a prompt and its mirror image, and for no others."""
    things = [dict(thing) for thing in metadata["include"]]
    relation = things[0].pop("position", [None])[0]
    if relation in MIRRORED:
        things, relation = things[::-1], MIRRORED[relation]
    elif relation is None:
        things.sort(key=lambda thing: (thing["class"], thing.get("color", "")))
    return [metadata["tag"], things, relation]


def _is_held_out(metadata: dict[str, Any]) -> bool:
    """About every fifth scene, by the hash of what it asks for; mirror images hash alike."""
    canonical = json.dumps([SPLIT_SALT, *describe_scene(metadata)], sort_keys=True)
    return hashlib.sha256(canonical.encode()).digest()[0] % 5 == 0
