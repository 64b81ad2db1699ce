"""The steps that are drawn and not trained yet, each with its groups.

Groups may change places: where nothing of the first window has its rankings, and one of its groups is pending at a slow
reward, a group of a later window that has them takes its place. It is trained on at most `max_staleness` steps after
the one that it was drawn for, and whoever had to wait is in the window that it came from.

What waits for slow rankings is kept in a checkpoint, and a resume asks the same questions again: weights move, so
groups that are drawn again differ from those that raters have before them, and their work would be lost. A reward that
answers at once is asked anew instead, and nothing is kept. JSON and tensors in one file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
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
    """A group between its drawing and its update. Groups of different steps may change places."""

    id: str
    drawn: SampledGroup
    step: int  # that it was drawn for
    drawn_at: int  # updates the weights that drew it had had
    window: int  # the step that it is trained in, as things are
    place: int  # in that step's sum of gradients
    ranked: RankedGroup | None = None
    is_trained: bool = False


@dataclass
class Window:
    """The groups of one step, and what became of them so far."""

    step: int
    groups: dict[str, WaitingGroup]
    recorded: list[dict[str, Any]] = field(default_factory=list)  # what the recorder is to keep
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "wait": 0.0, "update": 0.0})
    reports: int = 0  # that it waits for pending rankings
    report_at: float = 0.0  # of `seconds["wait"]`: when it is said next

    def untrained(self) -> list[WaitingGroup]:
        return [each for each in self.groups.values() if not each.is_trained]


class Windows:
    """In the order of their steps; the first is the one that is trained on."""

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self._windows: deque[Window] = deque()

    @property
    def first(self) -> Window:
        return self._windows[0]

    def has_room(self) -> bool:
        """Whether another step may be drawn ahead."""
        return len(self._windows) <= self.max_staleness

    def next_step(self, finished_steps: int) -> int:
        """The step to be drawn next."""
        return self._windows[-1].step + 1 if self._windows else finished_steps

    def append(self, window: Window) -> None:
        self._windows.append(window)

    def drop_first(self) -> None:
        """It is trained on."""
        self._windows.popleft()

    def groups(self) -> Iterator[WaitingGroup]:
        for window in self._windows:
            yield from window.groups.values()

    def keep_ranked(self, ranked: RankedGroup) -> None:
        """An answer, to its group; nobody waits for one of another run."""
        for window in self._windows:
            if ranked.group_id in window.groups:
                window.groups[ranked.group_id].ranked = ranked

    def fill_in_ranked(self, pending: Collection[str]) -> bool:
        """Have a ranked group of a later window change places with one of the first's that is among `pending`. Whether
        there were two.
        """
        current = self.first
        for slow in (each for each in current.untrained() if each.id in pending):
            for later in list(self._windows)[1:]:
                ready = next((each for each in later.groups.values() if each.ranked), None)
                if ready is not None and later.step - slow.step <= self.max_staleness:
                    del current.groups[slow.id], later.groups[ready.id]
                    slow.window, ready.window = ready.window, slow.window
                    slow.place, ready.place = ready.place, slow.place
                    current.groups[ready.id], later.groups[slow.id] = ready, slow
                    slow.drawn.graphs.clear()  # of weights that will have moved on
                    return True
        return False

    def restore(self, groups: Collection[WaitingGroup]) -> None:
        """Put back what a checkpoint kept, each group in the window that it was in."""
        windows: dict[int, Window] = {}
        for each in groups:
            windows.setdefault(each.window, Window(each.window, {})).groups[each.id] = each
        self._windows.extend(windows[step] for step in sorted(windows))


# ---- in a checkpoint ------------------------------------------------------------------------------------------------


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
