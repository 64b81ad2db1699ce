"""The worlds of alignment.py: `shapes`, whose generator is the package's, and `words`, which is another one in kind.

A result that holds in both does not hang on scenes of four quadrants, which the first world and its encoders share.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import words

from dipole.tiny.job import build_demo_prompts
from dipole.tiny.world import describe_scene
from dipole_rewards.reward import Reward
from dipole_rewards.rewards.shapes import Shapes

HELD_OUT_REWARD = "colourfulness"
SPLIT_SALT = "blind-0"  # the first that was tried
SEEN_FOR_TUNING = 96  # of the demo's training prompts, which were in view while the encoder's recipe was found
TUNING_PROMPTS = 96


@dataclass(frozen=True)
class Split:
    """Lines of a prompts file. `tuning` are the first of `train`, in an order that was shuffled once."""

    train: list[dict[str, Any]]
    tuning: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A generator to be aligned, the reward that it is trained for, and prompts."""

    model: str
    reward: str
    load_reward: Callable[[], Reward]
    draw_split: Callable[[], Split]
    encoders: str  # what stands before the names of its encoders' weights; nothing in the package's own world
    lacks: tuple[str, ...] = ()  # arms that are of the first world alone

    def features_of(self, features: Mapping[str, Any]) -> Mapping[str, Any]:
        """An arm's features, with this world's encoder of the same seed where it names one."""
        if not self.encoders or features["type"] != "tiny_contrastive":
            return features
        return {**features, "weights": f"{self.encoders}{features.get('weights', 'contrastive-101')}"}


def draw_shapes_split() -> Split:
    """Prompts for a figure that nobody has looked at: the held-out ones are neither among those that the demo holds
    out, nor among the training prompts that settings were chosen on before. Of the rest every other scene is held out,
    by the hash of what it asks for; mirror images go together. The base has seen them, with their wrong captions;
    training here has not.
    """
    everything = build_demo_prompts(held_out=True) + build_demo_prompts(held_out=False)
    seen = build_demo_prompts(held_out=True) + build_demo_prompts(held_out=False)[:SEEN_FOR_TUNING]
    seen_scenes = {_scene(line) for line in seen}

    def is_held_out(line: dict[str, Any]) -> bool:
        scene = _scene(line)
        return scene not in seen_scenes and hashlib.sha256((SPLIT_SALT + scene).encode()).digest()[0] % 2 == 0

    train = [line for line in everything if not is_held_out(line)]
    random.Random(SPLIT_SALT).shuffle(train)
    return Split(train, train[:TUNING_PROMPTS], [line for line in everything if is_held_out(line)])


def _scene(line: dict[str, Any]) -> str:
    return json.dumps(describe_scene(line["metadata"]), sort_keys=True)


def draw_words_split() -> Split:
    """The words that the base never saw are held out; nobody has looked at any before."""
    train = [_line(prompt) for prompt in words.all_prompts(held_out=False)]
    random.Random(SPLIT_SALT).shuffle(train)
    return Split(train, train[:TUNING_PROMPTS], [_line(prompt) for prompt in words.all_prompts(held_out=True)])


def _line(prompt: words.WordPrompt) -> dict[str, Any]:
    return {"prompt": prompt.text, "metadata": prompt.metadata}


WORLDS = {
    "shapes": World("tiny-turbo", "shapes", Shapes, draw_shapes_split, encoders=""),
    "words": World(
        "words-turbo",
        "words",
        words.Words,
        draw_words_split,
        encoders="words-",
        lacks=("drpo-labelled", "drpo-mae", "drpo-tiny-decoder"),
    ),
}
