"""A run's evaluations and pictures: when they are due, what they compare with, which step was best, which events are
reported.

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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dipole.errors import InvalidInput
from dipole.protocol import images, job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.distributed.group import ProcessGroup, StopCheck
from dipole_trainer.evaluation import results, scoring, statistics
from dipole_trainer.evaluation.early_stop import EarlyStop, EvaluatedStep, choose_kept_step, find_early_stop
from dipole_trainer.features import FeatureExtractor, reads_pixels
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.groups import RankedGroup, Ranker
from dipole_trainer.ranking.known_answers import KnownAnswersRanker
from dipole_trainer.ranking.weight_changes import RewardSchedule
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.storage import job_layout

PROGRESS_EVERY_PROMPTS = 8  # evaluated prompts between two events


class EvaluationSchedule:
    """Evaluations before the first step, after the last, and every `evaluation.every` between; pictures every
    `samples.every`. Never twice for one step: an evaluation's first prompts are its pictures.

    Pictures are of held-out prompts where there are any. Else they are of `training_prompts`, about which no reward is
    asked here: nothing is held out that the job did not hold out.
    """

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
        training_prompts: Sequence[PromptSpec] = (),
        schedule: RewardSchedule | None = None,
    ) -> None:
        """`schedule` says what was trained on so far, where weights may be changed meanwhile."""
        self.schedule = schedule or RewardSchedule(spec.rewards)
        self.spec = spec
        self.generator = generator
        self.features = features
        self.micro_batches = micro_batches
        self.ranker = ranker
        self.on_event = on_event
        self.workdir = workdir
        self.job_id = job_id
        self.shows_held_out = bool(spec.evaluation.prompts)
        shown = spec.evaluation.prompts or tuple({each.prompt: each for each in training_prompts}.values())
        self.shown_prompts = tuple(shown[: spec.samples.prompts])
        self._interval = spec.sample_interval()

    def resume_at(self, step: int) -> None:
        """Forget what later steps left: a run that goes on from `step` will make its own.

        The events are reported again: the process may have crashed after writing the file and before reporting.
        """
        results.remove_results_after(self.workdir, step)
        if self._samples_path(step).is_file():
            self._report_samples(step, results.read_figures(self._samples_path(step)))
        if self._results_path(step).is_file():
            self._report_evaluation(step, results.read_figures(self._results_path(step)))

    def is_scheduled(self, step: int) -> bool:
        """Whether an evaluation or pictures belong to this step."""
        ends = step in (0, self.spec.steps)
        pictured = ends or (self._interval and step % self._interval == 0)
        return bool(self.is_evaluated(step) or (pictured and self.shown_prompts))

    def is_due(self, step: int) -> bool:
        """Whether any of it is still to be made: files tell, which rank 0 alone has."""
        made = self._results_path(step) if self.is_evaluated(step) else self._samples_path(step)
        return self.is_scheduled(step) and not made.is_file()

    def is_evaluation_due(self, step: int) -> bool:
        """Whether it may be found to be the best, and needs a checkpoint."""
        return self.is_evaluated(step) and self.is_due(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether the whole evaluation belongs to this step, and not pictures alone."""
        knobs = self.spec.evaluation
        here = step in (0, self.spec.steps) or (knobs.every and step % knobs.every == 0)
        return bool(here and knobs.prompts)

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
        whole = self.is_evaluated(step)
        prompts = self.spec.evaluation.prompts if whole else self.shown_prompts
        scored, sheet = scoring.score_prompts(
            self.spec.evaluation.model_copy(update={"prompts": prompts}),
            self.generator,
            self.features,
            self.ranker if self.shows_held_out else KnownAnswersRanker(),
            step=step,
            job_id=self.job_id,
            micro_batches=self.micro_batches,
            is_ours=processes.owns,
            on_progress=lambda count, total: self._report_progress(step, count, len(prompts), processes),
            on_ranked=lambda ranked: ranked.report_failures(step, self.on_event),
            on_other=on_other,
            asked=asked,
            latents=self._sends_latents(),
            check_stop=check_stop,
        )
        if processes.size > 1:
            scored, sheet = _gather_results(scored, sheet, check_stop, processes)
        if not processes.is_main:
            return
        for kind, told in processes.take_reports():
            self.on_event(kind, told)
        seconds = time.monotonic() - began
        # all files before any event: what has a file is said again by the next run
        shown = len(self.shown_prompts)
        sampled = self._write_samples(step, scored[:shown], sheet[:shown], seconds) if shown else None
        if whole:
            base = results.read_results(self._results_path(0)) if step else None
            found = statistics.summarize_scores(scored, base)
            found["weights"] = self.spec.optimizer.evaluated_weights
            found["hacking"] = self._find_hacking(step, scored, base, found) if base else None
            results.write_results(self._results_path(step), step, scored, found)
        if sampled is not None:
            self._report_samples(step, sampled)
        if whole:
            self._report_evaluation(step, {**found, "seconds": seconds})

    def _sends_latents(self) -> Literal["beside", "alone"] | None:
        """As training does, so that a reward scores the same things in both."""
        of_pixels = reads_pixels(self.features, self.spec.method.settings)
        if not self.spec.sends_latents(reads_pixels=of_pixels, may_be_taken=self.ranker.takes_latents()):
            return None
        return "alone" if self.spec.candidates_as == "latents" else "beside"

    def _write_samples(
        self, step: int, scored: Sequence[results.ScoredPrompt], sheet: Sequence[NDArray[np.uint8]], seconds: float
    ) -> dict[str, Any]:
        """Images, and what was found of them, which is returned."""
        base = self._samples_path(0)
        before = results.read_results(base) if step and base.is_file() else None
        figures = {
            "of": "held_out" if self.shows_held_out else "training",
            "weights": self.spec.optimizer.evaluated_weights,
            **statistics.summarize_scores(scored, before),
            "seconds": seconds,
        }
        results.write_sample_sheet(self.workdir, step, sheet, [item.prompt for item in scored])
        results.write_results(self._samples_path(step), step, scored, figures)
        return figures

    def _report_samples(self, step: int, figures: Mapping[str, Any]) -> None:
        shown = ("of", "weights", "scores", "diversity", "diversity_ratio", "seconds")
        told = {name: figures[name] for name in shown if name in figures}
        job_events.SamplesWritten(step=step, path=job_layout.samples_file(step), figures=told).report(self.on_event)

    def _report_evaluation(self, step: int, found: Mapping[str, Any]) -> None:
        evaluated = job_events.EvaluationFinished(step=step, path=job_layout.evaluation_file(step), figures=found)
        evaluated.report(self.on_event)
        if found.get("hacking"):
            job_events.RewardHackingFound(step=step, figures=found["hacking"]).report(self.on_event)
        self._report_unasked_stop(step)
        if step == 0:
            self._check_best_by(found["scores"])
        if (best := self.best_step()) is not None and best[0] == step:
            job_events.BestStepFound(step=step, score=best[1], value=best[2]).report(self.on_event)

    def best_step(self) -> tuple[int, str, float] | None:
        """(step, score's name, its mean) of the best evaluation after training began; the earlier of equals."""
        name, evaluated = self._list_evaluated()
        best = _find_best(evaluated)
        return None if name is None or best is None else (best[0], name, best[1])

    def steps_to_keep(self) -> set[int]:
        """Steps whose checkpoints stay: the best, and the one that a job with `stop_on` would end with."""
        _, evaluated = self._list_evaluated()
        best = _find_best(evaluated)
        kept = choose_kept_step(evaluated) if self.spec.stop_on else None
        return {step for step in (best and best[0], kept) if step is not None}

    def find_early_stop(self) -> EarlyStop | None:
        """Where a job with `stop_on: hacking` stops, once it has come there."""
        return find_early_stop(self._list_evaluated()[1])

    def _list_evaluated(self) -> tuple[str | None, list[EvaluatedStep]]:
        """The name of the score that says which step is best; and every evaluation after training began."""
        found = {}
        for path in (self.workdir / job_layout.EVALUATION_FOLDER).glob("*"):
            if step := job_layout.step_of_file(path.name):
                found[step] = json.loads(path.read_text())
        name = self._best_by_score(found[min(found)]["scores"]) if found else None
        return name, [
            EvaluatedStep(step, each["scores"].get(name, {}).get("mean"), each.get("hacking"))
            for step, each in sorted(found.items())
        ]

    def _best_by_score(self, scores: Mapping[str, Any]) -> str | None:
        """The score that says which step is best: as asked, else a held-out reward's, else a trained one's."""
        by_role = sorted(self.spec.rewards, key=lambda reward: (not reward.is_held_out, -reward.weight))
        wanted = [self.spec.evaluation.best_by] if self.spec.evaluation.best_by else [each.name for each in by_role]
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

    def _samples_path(self, step: int) -> Path:
        return self.workdir / job_layout.sample_figures_file(step)

    def _report_progress(self, step: int, count: int, prompts: int, processes: ProcessGroup) -> None:
        """Of an evaluation, as rank 0 is getting on: the others' shares are like its own."""
        ours = len(range(processes.rank, prompts, processes.size))
        if processes.is_main and self.is_evaluated(step) and (count % PROGRESS_EVERY_PROMPTS == 0 or count == ours):
            done = min(count * processes.size, prompts)
            job_events.EvaluationProgress(step=step, prompts_done=done, prompts=prompts).report(self.on_event)

    def _find_hacking(
        self,
        step: int,
        scored: Sequence[results.ScoredPrompt],
        base: Sequence[results.ScoredPrompt],
        found: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """Reward hacking against the base or, where a reward rose before it fell, against the best step so far."""
        trained, held_out = self.schedule.trained_before(step), self.schedule.held_out_before(step)
        hacked = statistics.reward_hacking(found, trained, held_out)
        if hacked is None and (best := self.best_step()) is not None:
            before = results.read_results(self._results_path(best[0]))
            since = statistics.summarize_scores(scored, before, spread_of=base)
            hacked = statistics.reward_hacking(since, trained, held_out, than=f"step {best[0]}")
        return hacked

    def _report_unasked_stop(self, step: int) -> None:
        """Say of a job without `stop_on` where it would have stopped: at the first such step alone."""
        if self.spec.stop_on is not None or not self._results_path(step).is_file():
            return
        stop = self.find_early_stop()
        if stop is not None and stop.step == step:
            warning = f"with stop_on: hacking this job would have stopped at step {step}, {stop.reason()}"
            job_events.JobWarned(warning=warning).report(self.on_event)


def _find_best(evaluated: Sequence[EvaluatedStep]) -> tuple[int, float] | None:
    """(step, score) of the best, the earlier of equals; None where none has a score."""
    known = [(each.step, each.score) for each in evaluated if each.score is not None]
    return max(known, key=lambda each: each[1]) if known else None


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
