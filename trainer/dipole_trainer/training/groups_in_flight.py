"""Groups drawn ahead that wait for slow rankings, kept in a checkpoint: a resume asks the same questions again.

Weights move, so groups that are drawn again differ from those that raters have before them, and their work would be
lost. A reward that answers at once is asked anew instead, and nothing is kept. JSON and tensors in one file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup
from dipole_trainer.ranking.lazy_images import read_images
from dipole_trainer.spec import PromptSpec
from dipole_trainer.training.rollout import SampledGroup

METADATA_KEY = "groups"


@dataclass
class WaitingGroup:
    """A group between its drawing and its update. Groups of different steps may change places (windows.py)."""

    id: str
    drawn: SampledGroup
    step: int  # that it was drawn for
    drawn_at: int  # updates the weights that drew it had had
    window: int  # the step that it is trained in, as things are
    place: int  # in that step's sum of gradients
    ranked: RankedGroup | None = None
    is_trained: bool = False


def save_groups(path: Path, groups: Sequence[WaitingGroup]) -> None:
    """Write groups that have their candidates; what is computed from them is not kept."""
    tensors: dict[str, torch.Tensor] = {}
    told: list[dict[str, Any]] = []
    for number, each in enumerate(groups):
        drawn, asked = each.drawn, each.drawn.candidates
        assert asked is not None, "an online group has its candidates"
        images, found_late = read_images(asked.images)  # before rows are counted: one without an image is left out
        kept = {"noise": drawn.noise, "ranked": drawn.ranked_latents, "images": torch.tensor(images)}
        kept |= {} if drawn.ranks_itself else {"x": drawn.x}  # else it is what is ranked
        kept |= {} if asked.latents is None else {"latents": torch.tensor(asked.latents)}
        tensors |= {f"{number}.{name}": value.detach().cpu().contiguous() for name, value in kept.items()}
        told.append(
            {
                **{name: getattr(each, name) for name in ("id", "step", "drawn_at", "window", "place")},
                "index": drawn.index,
                "prompt": drawn.prompt.model_dump(mode="json"),
                "rows": list(drawn.rows),
                "seeds": list(drawn.seeds),
                "flaws": list(drawn.flaws.items()),
                "ranks_itself": drawn.ranks_itself,
                "progress": asked.progress,
                "asked_seeds": list(asked.seeds),
                "asked_flaws": list({**asked.flaws, **found_late}.items()),
                "vae": asked.vae,
                "latents_alone": asked.latents_alone,
            }
        )
    safetensors.torch.save_file(tensors, path, metadata={METADATA_KEY: json.dumps(told)})


def load_groups(path: Path, device: torch.device) -> list[WaitingGroup]:
    """What `save_groups` wrote; none where there is no file."""
    if not path.is_file():
        return []
    groups = []
    with safe_open(path, framework="pt") as file:
        for number, told in enumerate(json.loads(file.metadata()[METADATA_KEY])):
            noise, ranked = (file.get_tensor(f"{number}.{name}").to(device) for name in ("noise", "ranked"))
            x = ranked if told["ranks_itself"] else file.get_tensor(f"{number}.x").to(device)
            prompt = PromptSpec.model_validate(told["prompt"])
            images = file.get_tensor(f"{number}.images").numpy()
            vae = told.get("vae")
            latents = None if vae is None else file.get_tensor(f"{number}.latents").numpy()
            asked = CandidateGroup(
                told["id"], told["step"], prompt.prompt, prompt.metadata, images, told["asked_seeds"],
                dict(told["asked_flaws"]), progress=told.get("progress"), latents=latents, vae=vae,
                latents_alone=bool(told.get("latents_alone")),
            )  # fmt: skip
            drawn = SampledGroup(
                told["index"], prompt, told["rows"], told["seeds"], noise, ranked, x, told["ranks_itself"],
                flaws=dict(told["flaws"]), candidates=asked,
            )  # fmt: skip
            own = {name: told[name] for name in ("id", "step", "drawn_at", "window", "place")}
            groups.append(WaitingGroup(drawn=drawn, **own))
    return groups
