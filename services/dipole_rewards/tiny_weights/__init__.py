"""Tiny random weights in the published layouts, for trying out and testing rewards without the real ones.

One folder a reward, in seconds, with a golden.json of what these weights give: it tells that they load and compute as
they did, and nothing about images. `scripts/tiny-weights` writes them; TinyHPSv3 serves `hpsv3`'s, because HPSv3 itself
insists on the published instruction.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dipole_rewards.networks.weight_files import WeightedReward
from dipole_rewards.rewards.aesthetic import Aesthetic
from dipole_rewards.rewards.clip import Clip
from dipole_rewards.rewards.geneval import GenEval
from dipole_rewards.rewards.hpsv2 import HPSv2
from dipole_rewards.rewards.imagereward import ImageReward
from dipole_rewards.rewards.pickscore import PickScore
from dipole_rewards.settings import WeightSettings
from dipole_rewards.tiny_weights.blip_files import write_imagereward
from dipole_rewards.tiny_weights.clip_files import write_aesthetic, write_clip, write_open_clip
from dipole_rewards.tiny_weights.geneval_files import write_geneval
from dipole_rewards.tiny_weights.hpsv3_files import TinyHPSv3, write_hpsv3

# name: (what writes its files, what is served from them)
WRITERS: dict[str, tuple[Callable[[Path], None], type[WeightedReward]]] = {
    "clip": (write_clip, Clip),
    "pickscore": (partial(write_clip, activation="gelu"), PickScore),
    "aesthetic": (write_aesthetic, Aesthetic),
    "hpsv2": (write_open_clip, HPSv2),
    "hpsv3": (write_hpsv3, TinyHPSv3),
    "geneval": (write_geneval, GenEval),
    "imagereward": (write_imagereward, ImageReward),
}


def write_weights(folder: Path, reward: str, *, seed: int = 0) -> Path:
    """Write the weights of `reward`, a key of REWARDS, to `folder`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files, kind = WRITERS[reward]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        files(folder)
    golden = folder / "golden.json"
    golden.unlink(missing_ok=True)
    opened = kind.from_settings(WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu")
    known = opened.golden()
    (score,) = opened.score(prompt=known.prompt, images=[known.image], metadata=known.metadata).scores
    golden.write_text(json.dumps({"score": score}))
    return folder
