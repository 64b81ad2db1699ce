"""The demo's job on the tiny world, as the body of `POST /v1/fine_tuning/jobs` (without its files)."""

from __future__ import annotations

from typing import Any

from dipole.tiny.world import TinyPrompt, prompts

HELD_OUT_NOISES = 4  # images per held-out prompt in an evaluation


def demo_job(*, steps: int = 150, reward: str = "shapes") -> dict[str, Any]:
    """Train `tiny-turbo` for `reward`; the other embedded reward is held out and only watched."""
    watched = {"shapes": "colourfulness", "colourfulness": "shapes"}[reward]
    return {
        "model": "tiny-turbo",
        "features": "tiny",
        "prompts": [line(prompt) for prompt in prompts(held_out=False)],
        "rewards": [{"name": reward}, {"name": watched, "weight": 0, "required": False}],
        "method": {
            "type": "drpo",
            "drpo": {"positives": 8, "negatives": 8, "radii": [0.2, 0.5, 1.0], "mask_self": True},
        },
        "steps": steps,
        "candidates": 16,
        "prompts_per_step": 4,
        "chunk_size": 16,
        "lora": {"rank": 16, "alpha": 16, "target_modules": TARGETS},
        "optimizer": {"lr": 5e-4, "warmup_steps": 8, "decay_steps": steps // 2},
        "evaluation": {
            "prompts": [line(prompt) for prompt in prompts(held_out=True)],
            "images_per_prompt": HELD_OUT_NOISES,
        },
        "checkpoint_every": 25,
    }


# Attention alone (the published choice) is little in so small a network: its convolutions and feed-forwards take part.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "ff.net.0.proj", "ff.net.2"]


def line(prompt: TinyPrompt) -> dict[str, Any]:
    """One line of a prompts file."""
    return {"prompt": prompt.text, "metadata": prompt.metadata}
