"""A run's evaluations: when they are due, what they compare with, which step was best, and which events are reported.

Each process of the run evaluates its share of the prompts: generating and waiting for rewards cost as much as some
steps, and what comes back is small. Rank 0 puts the shares together.

| who       | waits for                                      | woken by                                     |
|-----------|------------------------------------------------|----------------------------------------------|
| process r | scores of its prompts, those with i % size = r | its ranker; ended by check_stop              |
| rank 0    | everybody's scores                             | the last all_gather; then it writes, reports |
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
from dipole.protocol import images, job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.distributed.group import ProcessGroup, StopCheck
from dipole_trainer.evaluation import results, scoring, statistics
from dipole_trainer.features import FeatureExtractor
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.groups import RankedGroup, Ranker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout

PROGRESS_EVERY_PROMPTS = 8  # evaluated prompts between two events


class EvaluationSchedule:
    """Before the first step, after the last, and every `evaluation.every` between; never twice for one step."""

    def __init__(
        self,
        spec: TrainSpec,
        generator: OneStepGenerator,
        features: FeatureExtractor,
        micro_batches: MicroBatches,
        ranker: Ranker,
        on_event: OnEvent,
        workdir: Path,
        job_id: str,
    ) -> None:
        self.spec, self.generator, self.features, self.micro_batches, self.ranker = (
            spec,
            generator,
            features,
            micro_batches,
            ranker,
        )
        self.on_event, self.workdir, self.job_id = on_event, workdir, job_id

    def resume_at(self, step: int) -> None:
        """Forget what later steps left: a run that goes on from `step` will make its own.

        The events are reported again: the process may have crashed after writing the file and before reporting.
        """
        results.remove_results_after(self.workdir, step)
        if self._results_path(step).is_file():
            self._report_evaluation(step, results.read_figures(self._results_path(step)))

    def is_scheduled(self, step: int) -> bool:
        knobs = self.spec.evaluation
        here = step in (0, self.spec.steps) or (knobs.every and step % knobs.every == 0)
        return bool(here and knobs.prompts)

    def is_due(self, step: int) -> bool:
        """Whether it is still to be evaluated: files tell, which rank 0 alone has."""
        return self.is_scheduled(step) and not self._results_path(step).is_file()

    def evaluate_step(
        self,
        step: int,
        check_stop: StopCheck,
        processes: ProcessGroup,
        on_other: Callable[[RankedGroup], None] = lambda ranked: None,
    ) -> None:
        """Evaluate the present weights, write what was found, and say it. `check_stop` may end it by what it raises.
        `on_other` gets answers for groups of the training, which go on being ranked meanwhile.
        """
        began = time.monotonic()
        asked = frozenset(reward.name for reward in self.spec.rewards if reward.evaluates)
        scored, sheet = scoring.score_prompts(
            self.spec.evaluation,
            self.generator,
            self.features,
            self.ranker,
            step=step,
            job_id=self.job_id,
            micro_batches=self.micro_batches,
            is_ours=processes.owns,
            on_progress=lambda count, total: self._report_progress(step, count, total, processes),
            on_ranked=lambda ranked: ranked.report_failures(step, self.on_event),
            on_other=on_other,
            asked=asked,
            check_stop=check_stop,
        )
        if processes.size > 1:
            scored, sheet = _gather_results(scored, sheet, check_stop, processes)
        if not processes.is_main:
            return
        for kind, told in processes.take_reports():
            self.on_event(kind, told)
        before = results.read_results(self._results_path(0)) if step else None
        found = statistics.summarize_scores(scored, before)
        results.write_sample_sheet(self.workdir, step, sheet, [item.prompt for item in scored])
        results.write_results(self.workdir, step, scored, found)
        self._report_evaluation(step, {**found, "seconds": time.monotonic() - began})

    def _report_evaluation(self, step: int, found: Mapping[str, Any]) -> None:
        job_events.SamplesWritten(step=step, path=job_layout.samples_file(step)).report(self.on_event)
        evaluated = job_events.EvaluationFinished(step=step, path=job_layout.evaluation_file(step), figures=found)
        evaluated.report(self.on_event)
        self._warn_of_reward_hacking(step, found)
        if step == 0:
            self._check_best_by(found["scores"])
        if (best := self.best_step()) is not None and best[0] == step:
            job_events.BestStepFound(step=step, score=best[1], value=best[2]).report(self.on_event)

    def best_step(self) -> tuple[int, str, float] | None:
        """(step, score's name, its mean) of the best evaluation after training began; the earlier of equals."""
        found = {}
        for path in (self.workdir / job_layout.EVALUATION_FOLDER).glob("*"):
            if step := job_layout.step_of_file(path.name):
                found[step] = json.loads(path.read_text())["scores"]
        name = self._best_by_score(found[min(found)]) if found else None
        means = [(step, scores.get(name, {}).get("mean")) for step, scores in sorted(found.items())]
        known = [(step, mean) for step, mean in means if mean is not None]
        if name is None or not known:
            return None
        step, mean = max(known, key=lambda each: each[1])
        return step, name, mean

    def _best_by_score(self, scores: Mapping[str, Any]) -> str | None:
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

    def _results_path(self, step: int) -> Path:
        return self.workdir / job_layout.evaluation_file(step)

    def _report_progress(self, step: int, count: int, total: int, processes: ProcessGroup) -> None:
        """As rank 0 is getting on: the others' shares are like its own."""
        if processes.is_main and (count % PROGRESS_EVERY_PROMPTS == 0 or count == total):
            prompts = len(self.spec.evaluation.prompts)
            done = min(count * processes.size, prompts)
            job_events.EvaluationProgress(step=step, prompts_done=done, prompts=prompts).report(self.on_event)

    def _warn_of_reward_hacking(self, step: int, found: Mapping[str, Any]) -> None:
        trained = [reward.name for reward in self.spec.rewards if reward.weight > 0]
        held_out = [reward.name for reward in self.spec.rewards if reward.weight == 0]
        hacked = statistics.reward_hacking(found, trained, held_out)
        if hacked:
            job_events.RewardHackingFound(step=step, figures=hacked).report(self.on_event)


def _gather_results(
    scored: Sequence[results.ScoredPrompt],
    sheet: Sequence[NDArray[np.uint8]],
    check_stop: StopCheck,
    processes: ProcessGroup,
) -> tuple[list[results.ScoredPrompt], list[NDArray[np.uint8]]]:
    """Everybody's results and images in the order of the prompts, which `ProcessGroup.owns` deals out in turn."""
    mine = {
        "scored": [vars(item) for item in scored],
        "sheet": [[base64.b64encode(images.encode_png(image)).decode() for image in row] for row in sheet],
    }
    told = processes.all_gather(mine, check_stop)

    def interleave(name: str) -> list[Any]:
        count = sum(len(each[name]) for each in told)
        return [told[index % processes.size][name][index // processes.size] for index in range(count)]

    rows = [[images.decode_image(base64.b64decode(image), "image/png") for image in row] for row in interleave("sheet")]
    return [results.ScoredPrompt(**item) for item in interleave("scored")], [np.stack(row) for row in rows]
