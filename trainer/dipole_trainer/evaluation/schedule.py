"""A run's evaluations: when they are due, what they compare with, which step was best, and what is said of them.

Each process of the run evaluates its share of the prompts: generating and waiting for rewards cost as much as some
steps, and what comes back is small. Rank 0 puts the shares together.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipole.errors import InvalidInput
from dipole.protocol import images
from dipole_trainer.compute.micro_batches import Chunks
from dipole_trainer.distributed.group import Heed, World
from dipole_trainer.evaluation import results, scoring, statistics
from dipole_trainer.features import Features
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.groups import Ranker
from dipole_trainer.spec import TrainSpec

OnEvent = Callable[[str, dict[str, Any]], None]
PROGRESS_EVERY = 8  # evaluated prompts between two events


class Evaluations:
    """Before the first step, after the last, and every `evaluation.every` between; never twice for one step."""

    def __init__(
        self,
        spec: TrainSpec,
        generator: OneStepGenerator,
        features: Features,
        chunks: Chunks,
        rank: Ranker,
        on_event: OnEvent,
        workdir: Path,
        job_id: str,
    ) -> None:
        self.spec, self.generator, self.features, self.chunks, self.rank = spec, generator, features, chunks, rank
        self.on_event, self.workdir, self.job_id = on_event, workdir, job_id

    def resume(self, step: int) -> None:
        """Forget what later steps left: a run that goes on from `step` will make its own.

        Whoever died after writing this step's evaluation may not have said so: it is said again.
        """
        results.forget_after(self.workdir, step)
        if self._path(step).is_file():
            self._say(step, results.read_figures(self._path(step)))

    def scheduled(self, step: int) -> bool:
        knobs = self.spec.evaluation
        here = step in (0, self.spec.steps) or (knobs.every and step % knobs.every == 0)
        return bool(here and knobs.prompts)

    def due(self, step: int) -> bool:
        """Whether it is still to be evaluated: files tell, which rank 0 alone has."""
        return self.scheduled(step) and not self._path(step).is_file()

    def run(self, step: int, heed: Heed, world: World) -> None:
        """Evaluate the present weights, write what was found, and say it. `heed` may end it by what it raises."""
        began = time.monotonic()
        scored, sheet = scoring.evaluate(
            self.spec.evaluation,
            self.generator,
            self.features,
            self.rank,
            step=step,
            job_id=self.job_id,
            chunks=self.chunks,
            mine=world.mine,
            on_progress=lambda count, total: self._progress(step, count, total, world),
            heed=heed,
        )
        if world.size > 1:
            scored, sheet = _gathered(scored, sheet, heed, world)
        if not world.leads:
            return
        for kind, told in world.events():
            self.on_event(kind, told)
        before = results.read(self._path(0)) if step else None
        found = statistics.summary(scored, before)
        results.write_sheet(self.workdir / "samples", step, sheet, [item.prompt for item in scored])
        results.write(self.workdir / "evaluation", step, scored, found)
        self._say(step, {**found, "seconds": time.monotonic() - began})

    def _say(self, step: int, found: Mapping[str, Any]) -> None:
        name = str(self._path(step).relative_to(self.workdir))
        self.on_event("samples", {"step": step, "path": f"samples/step-{step}.png"})
        self.on_event("evaluation", {"step": step, "path": name, **found})
        self._warn_of_hacking(step, found)
        if step == 0:
            self._check_best_by(found["scores"])
        if (best := self.best()) is not None and best[0] == step:
            self.on_event("best", {"step": step, "score": best[1], "value": best[2]})

    def best(self) -> tuple[int, str, float] | None:
        """(step, score's name, its mean) of the best evaluation after training began; the earlier of equals."""
        found = {}
        for path in self.workdir.glob("evaluation/step-*.json"):
            if step := int(path.stem.removeprefix("step-")):
                found[step] = json.loads(path.read_text())["scores"]
        name = self._judge(found[min(found)]) if found else None
        means = [(step, scores.get(name, {}).get("mean")) for step, scores in sorted(found.items())]
        known = [(step, mean) for step, mean in means if mean is not None]
        if name is None or not known:
            return None
        step, mean = max(known, key=lambda each: each[1])
        return step, name, mean

    def _judge(self, scores: Mapping[str, Any]) -> str | None:
        """The score that says which step is best: as asked, else a held-out reward's, else a trained one's."""
        by_weight = sorted(self.spec.rewards, key=lambda reward: reward.weight > 0)
        wanted = [self.spec.evaluation.best_by] if self.spec.evaluation.best_by else [each.name for each in by_weight]
        return next((name for name in wanted if scores.get(name, {}).get("mean") is not None), None)

    def _check_best_by(self, scores: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a score that there is none of: no step would ever be the best."""
        wanted = self.spec.evaluation.best_by
        away = [name for name, figure in scores.items() if "mean" not in figure]  # its parts may come with it
        if wanted is None or wanted in scores or any(wanted.startswith(f"{name}.") for name in away):
            return
        there = f"there are {', '.join(scores)}" if scores else "there are none: leave it out"
        raise InvalidInput(f"evaluation.best_by: no score is called {wanted!r}; {there}", field="evaluation.best_by")

    def _path(self, step: int) -> Path:
        return self.workdir / f"evaluation/step-{step}.json"

    def _progress(self, step: int, count: int, total: int, world: World) -> None:
        """As rank 0 is getting on: the others' shares are like its own."""
        if world.leads and (count % PROGRESS_EVERY == 0 or count == total):
            prompts = len(self.spec.evaluation.prompts)
            done = min(count * world.size, prompts)
            self.on_event("evaluating", {"step": step, "prompts_done": done, "prompts": prompts})

    def _warn_of_hacking(self, step: int, found: Mapping[str, Any]) -> None:
        trained = [reward.name for reward in self.spec.rewards if reward.weight > 0]
        held_out = [reward.name for reward in self.spec.rewards if reward.weight == 0]
        hacked = statistics.hacking(found, trained, held_out)
        if hacked:
            self.on_event("reward_hacking", {"step": step, **hacked})


def _gathered(
    scored: Sequence[results.Scored], sheet: Sequence[NDArray[np.uint8]], heed: Heed, world: World
) -> tuple[list[results.Scored], list[NDArray[np.uint8]]]:
    """Everybody's results and images in the order of the prompts, which `World.mine` deals out in turn."""
    mine = {
        "scored": [vars(item) for item in scored],
        "sheet": [[base64.b64encode(images.encode_png(image)).decode() for image in row] for row in sheet],
    }
    told = world.exchange(mine, heed)

    def dealt(name: str) -> list[Any]:
        count = sum(len(each[name]) for each in told)
        return [told[index % world.size][name][index // world.size] for index in range(count)]

    rows = [[images.decode(base64.b64decode(image), "image/png") for image in row] for row in dealt("sheet")]
    return [results.Scored(**item) for item in dealt("scored")], [np.stack(row) for row in rows]
