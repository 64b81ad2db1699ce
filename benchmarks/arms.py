"""The arms of alignment.py: methods, the spaces they work in, and what of each is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tuning import Point
from worlds import HELD_OUT_REWARD, World

from dipole.tiny.job import build_demo_job
from dipole_trainer.spec import TrainSpec

STEPS, CANDIDATES, SIDE = 30, 16, 8
RATE, RATE_FACTOR = 5e-4, 10**0.5
RADII, PUBLISHED_RADII = (0.2, 0.5, 1.0), (0.02, 0.05, 0.2)
ENCODERS = (101, 102, 103)  # seeds of scripts/train-tiny --stages contrastive; the first is the package's


@dataclass(frozen=True)
class Knob:
    """A setting of the method's own that is tuned beside the rate: `start` times powers of `factor`."""

    name: str
    start: float
    factor: float


@dataclass(frozen=True)
class Arm:
    title: str
    method: str
    features: Mapping[str, Any] = field(default_factory=lambda: {"type": "tiny_contrastive"})
    own: Mapping[str, Any] = field(default_factory=dict)
    knob: Knob | None = None
    settings_of: str = ""  # the arm whose settings it takes; itself where empty
    staleness: int = 0
    decoder: str = "vae"  # of the images that rewards see


# `radii` are RADII times the knob
SCALE = Knob("radii", 1.0, 10**0.5)
DIPOLE: dict[str, Any] = {"method": "drpo", "own": {"mask_self": True}, "knob": SCALE}
MAE_KEYS = [f"layer2_{pool}" for pool in ("mean", "std", "mean_2", "std_2", "mean_4", "std_4")]

DEEPEST_BLOCKS = ["down_blocks.1", "mid_block", "up_blocks.0"]  # as published, of a U-Net of two blocks a side


def _encoder(seed: int) -> dict[str, str]:
    return {"type": "tiny_contrastive"} | ({} if seed == ENCODERS[0] else {"weights": f"contrastive-{seed}"})


ARMS: dict[str, Arm] = {
    "drpo-101": Arm("DrPO, encoder 101", **DIPOLE),
    "drpo-102": Arm("DrPO, encoder 102", **DIPOLE, features=_encoder(102), settings_of="drpo-101"),
    "drpo-103": Arm("DrPO, encoder 103", **DIPOLE, features=_encoder(103), settings_of="drpo-101"),
    "random": Arm("random ranking", **{**DIPOLE, "method": "random"}, settings_of="drpo-101"),
    "drpo-published": Arm("DrPO, published radii, unmasked", "drpo", own={"radii": PUBLISHED_RADII}),
    "dpo": Arm("DPO", "dpo", knob=Knob("beta", 30.0, 10.0)),
    "dpo-features": Arm("DPO in φ", "dpo", own={"space": "features"}, knob=Knob("beta", 3000.0, 10.0)),
    "grpo": Arm("GRPO", "grpo", knob=Knob("temperature", 1.0, 10.0)),
    "pso": Arm("PSO", "pso", knob=Knob("std", 0.1, 2.0)),
    "sft": Arm("best-of-K", "sft"),
    "sft-features": Arm("best-of-K in φ", "sft", own={"space": "features"}),
    "drpo-labelled": Arm("DrPO, labelled encoder", **DIPOLE, features={"type": "tiny_labelled"}),
    "drpo-latents": Arm("DrPO in latents", **DIPOLE, features={"type": "latents"}),
    "drpo-mae": Arm(
        "DrPO, masked autoencoder", **DIPOLE,
        features={"type": "latent_mae", "weights": "latent-mae-101", "keys": MAE_KEYS},
    ),
    "drpo-teacher": Arm(
        "DrPO, teacher U-Net", **DIPOLE,
        features={"type": "teacher_unet", "timestep": 999, "pool": 2, "keys": DEEPEST_BLOCKS},
    ),
    "drpo-tiny-decoder": Arm("DrPO, tiny decoder for rewards", **DIPOLE, settings_of="drpo-101", decoder="tiny"),
    "drpo-1-stale": Arm("DrPO, 1 window stale", **DIPOLE, settings_of="drpo-101", staleness=1),
    "drpo-2-stale": Arm("DrPO, 2 windows stale", **DIPOLE, settings_of="drpo-101", staleness=2),
}  # fmt: skip
HEADLINE = tuple(f"drpo-{seed}" for seed in ENCODERS)  # DrPO is the mean over these, so that no one encoder decides
TUNED = tuple(name for name, arm in ARMS.items() if not arm.settings_of)


def arms_of(world: World) -> dict[str, Arm]:
    """The arms in a world, whose encoders are its own; some are of the first one alone."""
    return {
        name: replace(arm, features=world.features_of(arm.features))
        for name, arm in ARMS.items()
        if name not in world.lacks
    }


def settings_at(arm: Arm, point: Point) -> dict[str, Any]:
    """The rate and the knob of a point of the grid, `{"lr", "own"}`."""
    rate, steps = point
    own = {}
    if arm.knob is not None:
        value = arm.knob.start * arm.knob.factor**steps
        own = {arm.knob.name: [_rounded(radius * value) for radius in RADII] if arm.knob is SCALE else _rounded(value)}
    return {"lr": _rounded(RATE * RATE_FACTOR**rate), "own": own}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def build_spec(
    world: World, arm: Arm, settings: Mapping[str, Any], seed: int, steps: int, prompts: list[dict[str, Any]]
) -> TrainSpec:
    """The demo's job in that world, with the arm's method in its space; nothing is evaluated or drawn on the way."""
    job = build_demo_job(steps=steps)
    sides = {"positives": SIDE, "negatives": SIDE} if arm.method in ("drpo", "random", "dpo") else {}
    changes = {
        "model": world.model,
        "prompts": prompts,
        "rewards": [{"name": world.reward}, {"name": HELD_OUT_REWARD, "weight": 0}],
        "features": arm.features,
        "method": {"type": arm.method, arm.method: {**sides, **arm.own, **settings["own"]}},
        "optimizer": {**job["optimizer"], "lr": settings["lr"]},
        "candidates": CANDIDATES,
        "evaluation": {},
        "samples": {"prompts": 0},
        "checkpoint_every": steps,
        "max_staleness": arm.staleness,
        "reward_decoder": arm.decoder,
        "seed": seed,
    }
    return TrainSpec.model_validate({**job, **changes})
