"""The demo's job on the tiny world: prompts files, and the body of `POST /v1/fine_tuning/jobs` without them."""

from __future__ import annotations

import random
from typing import Any

from dipole.tiny.world import COLOURS, all_prompts

# Attention alone (the published choice) is little in so small a network: its convolutions and feed-forwards take part.
LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
    "ff.net.0.proj",
    "ff.net.2",
]


def build_demo_job(*, steps: int, reward: str = "shapes", seed: int = 0, method: str = "drpo") -> dict[str, Any]:
    """Train `tiny-turbo` for `reward`; the other embedded reward is held out and only watched.

    `method` is `drpo`, or `random`, the control: the same on shuffled ranks.
    """
    watched = {"shapes": "colourfulness", "colourfulness": "shapes"}[reward]
    return {
        "model": "tiny-turbo",
        "features": {"type": "tiny_contrastive"},
        "rewards": [{"name": reward}, {"name": watched, "weight": 0}],
        "method": {
            "type": method,
            method: {"positives": 8, "negatives": 8, "radii": [0.2, 0.5, 1.0], "mask_self": True},
        },
        "steps": steps,
        "candidates": 16,
        "prompts_per_step": 4,
        "chunk_size": 16,
        "lora": {"rank": 16, "alpha": 16, "target_modules": LORA_TARGETS},
        "optimizer": {"lr": 1.5e-3, "warmup_steps": 8, "decay_steps": steps // 2},
        "evaluation": {"images_per_prompt": 4},
        "checkpoint_every": 25,
        "seed": seed,
    }


def build_people_job(*, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train `tiny-turbo` for what one person ranks: four images of a prompt an update, and a checkpoint each dozen.

    A window is drawn ahead, so that the next four are there while the last answer trains.
    """
    return {
        "model": "tiny-turbo",
        "features": {"type": "tiny_contrastive"},
        "rewards": [{"name": "people", "evaluates": False}],
        "method": {
            "type": "drpo",
            "drpo": {"positives": 2, "negatives": 2, "radii": [0.2, 0.5, 1.0], "mask_self": True},
        },
        "steps": steps,
        "candidates": 4,
        "prompts_per_step": 1,
        "chunk_size": 4,
        "max_staleness": 1,
        "lora": {"rank": 16, "alpha": 16, "target_modules": LORA_TARGETS},
        "optimizer": {"lr": 1.5e-3, "warmup_steps": 2},
        "checkpoint_every": 12,
        "seed": seed,
    }


def build_people_prompts(*, held_out: bool, instructions: str | None = None) -> list[dict[str, Any]]:
    """Lines of a prompts file for one rater: prompts that name no colour, so that there is something to prefer."""
    colours = [f" {colour} " for colour in COLOURS]
    rating: dict[str, Any] = {"max_ratings": 1}
    if instructions is not None:
        rating["instructions"] = instructions
    return [
        {**line, "metadata": {**line["metadata"], "rating": rating}}
        for line in build_demo_prompts(held_out=held_out)
        if not any(colour in line["prompt"] for colour in colours)
    ]


def build_demo_prompts(*, held_out: bool) -> list[dict[str, Any]]:
    """Lines of a prompts file, shuffled once and for all, so that any first few are a fair sample."""
    chosen = all_prompts(held_out=held_out)
    random.Random(0).shuffle(chosen)  # noqa: S311
    return [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in chosen]
