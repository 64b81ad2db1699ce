"""The training loop: draw, have ranked, update. It never sees the network, only a GroupSource and its Ranker.

| who                  | waits for                                  | woken by                                       |
|----------------------|--------------------------------------------|------------------------------------------------|
| the loop             | an answer for the current step's groups    | the ranker, or POLL_INTERVAL_S: is it to stop? |
| rewards              | groups, sent for every step drawn so far   | their own queues                               |
| processes of the run | each other, once a step, before the update | the last to have added its gradients           |

One optimiser step reads a window of prompts. Within it the weights do not change, so all its groups are drawn and sent
at once, and each is turned into gradients when its answer comes, in whichever order. Gradients are then added up in the
order of the prompts, so that arrival order cannot change a bit of the result. `max_staleness` windows may be drawn
ahead of the update; with 0, the default, every ranking is of the weights it trains.

A reward that takes its time (202), as people do, does not hold up what others are ready for: a group that is pending
there changes places with one of a later window that has its rankings (windows.py). Windows in flight go on being ranked
during evaluations, and are kept in checkpoints.

    for step:   window ─ K samples a prompt ─ submit ──┐ (rewards work)
                features of x and x_ref while they do  │
                per answer: order → loss → gradient  ←─┘
                sum in order, then over processes → clip → AdamW

What this loop does not do: compute rewards, keep jobs, talk to queues, know a method. METHOD's "one update" gives the
steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dipole import tracing
from dipole.errors import NotFinite, NothingToLearn, RewardUnavailable
from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.checkpoints.moving_average import MovingAverage
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.evaluation.early_stop import EarlyStop
from dipole_trainer.evaluation.schedule import EvaluationSchedule
from dipole_trainer.ranking.groups import RankedGroup, RankingBacklog
from dipole_trainer.ranking.selection import SkippedGroup, order_group
from dipole_trainer.ranking.weight_changes import RewardSchedule, WeightChange
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.metrics_log import MetricsLog
from dipole_trainer.training.candidate_recorder import CandidateRecorder
from dipole_trainer.training.gradient_sum import OrderedGradientSum
from dipole_trainer.training.group_sources import GroupSource
from dipole_trainer.training.interface import RunControl, RunOutcome, TakeWeightChanges, no_weight_changes
from dipole_trainer.training.rollout import Rollout, SampledGroup
from dipole_trainer.training.step_metrics import StepMetrics
from dipole_trainer.training.windows import WaitingGroup, Window, Windows, load_groups, save_groups

MAX_STEPS_WITHOUT_UPDATE = 25  # steps without an update after which a job fails rather than pretend to train
MAX_REASONS = 16  # of groups that gave no gradient, kept in a checkpoint
SHOWN_REASONS = 3
FIRST_PENDING_REPORT_S = 10.0  # wait for pending rankings after which it is said; then twice as long, and so on
MAX_PENDING_REPORT_PAUSE_S = 300.0
SLOW_CHECKPOINT_S = 60.0  # waited for slow rankings, after which the next step is kept in a checkpoint
POLL_INTERVAL_S = 0.5  # how often a waiting loop looks whether it should stop


class Trainer:
    """One job's run on one process of its processes. Construct, then `run`."""

    def __init__(
        self,
        spec: TrainSpec,
        rollout: Rollout,
        source: GroupSource,
        evaluations: EvaluationSchedule,
        on_event: OnEvent,
        *,
        workdir: Path,
        control: RunControl,
        processes: ProcessGroup,
        recorder: CandidateRecorder | None = None,
        schedule: RewardSchedule | None = None,
        take_weight_changes: TakeWeightChanges = no_weight_changes,
    ) -> None:
        """`schedule` is the one that `source` and `evaluations` read: it is kept up to date here."""
        self.schedule, self.take_weight_changes = schedule or RewardSchedule(spec.rewards), take_weight_changes
        self.spec, self.rollout, self.source, self.evaluations = spec, rollout, source, evaluations
        self.recorder, self.metrics_log = recorder, MetricsLog(workdir)
        self.generator, self.ranker = rollout.generator, source.ranker
        self.on_event, self.workdir, self.control, self.processes = on_event, workdir, control, processes
        knobs = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=knobs.lr, betas=knobs.betas, weight_decay=knobs.weight_decay
        )
        self.average = MovingAverage(knobs.ema, self.generator) if knobs.ema is not None else None
        self.base_fingerprint = resume_state.fingerprint_base(self.generator)
        self.finished_steps = 0  # finished updates
        self.saved_step: int | None = None  # step of the newest checkpoint
        self.steps_without_update = 0  # steps in a row without an update
        self.untrained: Counter[str] = Counter()  # why their groups gave none
        self.has_told_flaws = False
        self.windows = Windows(spec.max_staleness)
        self.waited_s = 0.0  # for rankings, since the last checkpoint
        self.early_stop: EarlyStop | None = None  # once `stop_on` has ended the run
        self.started, self.started_at = time.monotonic(), 0

    def run(self) -> RunOutcome:
        """Train to the last step, or to where `stop_on` ends it, as `early_stop` says then. Returns "paused" or
        "cancelled" where `control` says so, with a checkpoint written.

        Raises RewardUnavailable, after writing a checkpoint, when a required reward is past its deadline. On all but
        rank 0 it never returns: processes.py says what it raises.
        """
        # or `gpu_gib` is that of this process's largest job so far
        if self.generator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.generator.device)
        try:
            self._resume_run()
            self._evaluate_when_due()
            while not self._stops_early() and self.finished_steps < self.spec.steps:
                with tracing.trace_span("step", step=self.finished_steps + 1):
                    self._train_step()
                self._checkpoint_when_due()
                self._evaluate_when_due()
            self.processes.release_followers()
            self._withdraw_rankings()
            return "succeeded"
        except RunStopped as stopped:
            self._write_checkpoint()
            if stopped.outcome == "cancelled":
                self._withdraw_rankings()
            return stopped.outcome
        except RewardUnavailable:
            self._write_checkpoint()
            raise
        finally:
            self.ranker.cancel()

    def _withdraw_rankings(self) -> None:
        """Nobody waits for them any more. An offline job's evaluations have a ranker of their own."""
        for ranker in (self.ranker, self.evaluations.ranker):
            ranker.cancel(withdraw=True)

    # ------------------------------------------------------------ one update

    def _train_step(self) -> None:
        """One optimiser step. Stopped half-way, it has changed nothing."""
        self.check_stop()
        self._take_weight_changes()
        while self.windows.has_room() and (step := self.windows.next_step(self.finished_steps)) < self.spec.steps:
            self.windows.append(self._draw_step(step))
        current, tally = self.windows.first, StepMetrics()
        total = self._sum_gradients(current, tally)
        self._apply_update(self._reduce_gradients(total, tally, current), tally)
        self.windows.drop_first()
        self._report_step(current, tally)
        # a run of fewer steps, none of which updated anything, has trained nothing either
        if self.steps_without_update == min(MAX_STEPS_WITHOUT_UPDATE, self.spec.steps):
            raise NothingToLearn(describe_untrained(self.steps_without_update, self.untrained))

    def _draw_step(self, step: int) -> Window:
        """Draw this process's groups of a step and send them off."""
        began = time.monotonic()
        is_next = step == self.finished_steps  # nothing is updated before
        groups = {
            group_id: WaitingGroup(group_id, drawn, step, self.finished_steps, window=step, place=drawn.index)
            for group_id, drawn in self.source.draw_groups(step, keep_graphs=is_next).items()
        }
        drawn = Window(step, groups)
        drawn.seconds["generate"] = time.monotonic() - began
        return drawn

    def _sum_gradients(self, current: Window, tally: StepMetrics) -> list[Tensor] | None:
        """The sum of the groups' gradients, as answers come; features are taken while they do not."""
        places = [each.place for each in current.groups.values()]
        gradients = OrderedGradientSum(places, lazy=self.spec.tune == "full")
        while waiting := current.untrained():
            unprepared = next((each for each in waiting if not each.drawn.is_prepared), None)
            is_busy = unprepared is not None or any(each.ranked for each in waiting)
            self._collect_ranked(current, blocking=not (is_busy or self._fill_in_ranked()))
            ready = next((each for each in current.untrained() if each.ranked), None)
            if ready is not None and ready.ranked is not None:
                began = time.monotonic()
                make = partial(self._group_gradient, ready, ready.ranked, current, tally)
                gradients.add_gradient(ready.place, make)
                ready.is_trained = True
                current.seconds["update"] += time.monotonic() - began
            elif unprepared is not None:
                self.rollout.prepare_features(unprepared.drawn)
            else:
                self.check_stop()
                self._report_pending(current)
        return gradients.total

    def _collect_ranked(self, current: Window, *, blocking: bool) -> None:
        """The next answer, if there is one, to its group."""
        began = time.monotonic()
        ranked = self.ranker.collect(POLL_INTERVAL_S if blocking else 0.0)
        current.seconds["wait"] += time.monotonic() - began
        if ranked is not None:
            self.windows.keep_ranked(ranked)

    def _fill_in_ranked(self) -> bool:
        """Let a group that has its rankings take the place of one that is pending; whether there were two."""
        if self.spec.max_staleness == 0 or self.recorder is not None:  # a recording has the groups of each step
            return False
        return self.windows.fill_in_ranked(
            {group_id for each in self.ranker.list_pending().values() for group_id in each.waiting}
        )

    def _report_pending(self, current: Window) -> None:
        """Say for whom the step waits, ever more rarely."""
        waited = current.seconds["wait"]
        if not self.processes.is_main or waited < max(current.report_at, FIRST_PENDING_REPORT_S):
            return
        own = {each.id for each in current.untrained()}
        for reward, found in self.ranker.list_pending().items():
            groups = len(own & found.waiting.keys())
            if not groups:
                continue
            expected = None if found.per_minute is None else 60 * groups / found.per_minute
            figures = {**pending_figures(found), "step_groups": groups, "expected_s": expected}
            job_events.RankingsPending(step=current.step, reward=reward, **figures).report(self.on_event)
        current.reports += 1
        pause = min(FIRST_PENDING_REPORT_S * 2.0 ** min(current.reports, 16), MAX_PENDING_REPORT_PAUSE_S)
        current.report_at = waited + pause

    def _group_gradient(
        self, waiting: WaitingGroup, ranked: RankedGroup, current: Window, tally: StepMetrics
    ) -> list[Tensor] | None:
        """The group's gradient, one tensor a parameter; None when it cannot be trained on."""
        drawn = waiting.drawn
        tally.filled_in += waiting.step > current.step
        tally.staleness = max(tally.staleness, self.finished_steps - waiting.drawn_at)
        ranked.report_failures(current.step, self.on_event)
        if self.recorder is not None and drawn.images is not None:
            np.asarray(drawn.images)  # decoded before rows are counted: one that has no image is left out
        self.rollout.prepare_features(drawn)
        self._report_flaws(drawn, ranked.group_id, current.step, tally)
        if drawn.ranks_candidates:
            ranked = ranked.of_rows(drawn.rows)
        rewards = self.source.rewards_at(current.step)
        tally.add_ranked(ranked, rewards)
        if self.recorder is not None:
            current.recorded.append(self.recorder.make_entry(drawn, ranked))
        positives, negatives = self.spec.method.settings.sides(self.spec.candidates)
        shuffle = None
        if self.rollout.method.shuffles_scores:
            (seed,) = derive_seeds(self.spec.seed, "shuffle", waiting.step, drawn.index, count=1)
            shuffle = np.random.default_rng(seed)
        found = order_group(ranked, rewards, positives=positives, negatives=negatives, shuffle=shuffle)
        if isinstance(found, SkippedGroup):
            drawn.drop_features()
            tally.skipped += 1
            tally.late += any((result.failure or "").startswith("late:") for result in ranked.results.values())
            tally.add_untrained(found.reason)
            skipped = job_events.GroupSkipped(
                step=current.step, group=ranked.group_id, code=found.code, reason=found.reason
            )
            skipped.report(self.on_event)
            return None
        tally.gated += found.gated
        loss, gradient = self.rollout.group_gradient(drawn, found, on_policy=waiting.drawn_at == self.finished_steps)
        drawn.drop_features()
        tally.graphs_kept += drawn.graphs_used
        tally.add_loss(loss.read_figures())
        if gradient is None:
            tally.add_untrained("its loss has no gradient")
        return gradient

    def _report_flaws(self, drawn: SampledGroup, group_id: str, step: int, tally: StepMetrics) -> None:
        """Count candidates that are not finite, and say it of the first."""
        tally.not_finite += len(drawn.flaws)
        if not drawn.flaws or self.has_told_flaws:
            return
        self.has_told_flaws = True
        count = len(drawn.flaws)
        reason = self.generator.describe_flaws(drawn.flaws, self.spec.candidates)
        told = job_events.CandidatesNotFinite(
            step=step, group=group_id, count=count, candidates=self.spec.candidates, reason=reason
        )
        told.report(self.on_event)

    def _reduce_gradients(self, total: list[Tensor] | None, tally: StepMetrics, current: Window) -> list[Tensor] | None:
        """Over processes, once all have done their share; one without a group to train on adds nothing."""
        share = {"tally": tally.to_plain(), "trained": total is not None, "recorded": current.recorded}
        told = self.processes.all_gather(share, self.check_stop)
        current.recorded = [entry for other in told for entry in other["recorded"]]
        for rank, other in enumerate(told):
            if rank != self.processes.rank:
                tally.merge(other["tally"])
        if not any(other["trained"] for other in told):
            return None
        total = total or [torch.zeros_like(parameter) for parameter in self.generator.parameters()]
        self.processes.all_reduce_(total)
        return total

    def _apply_update(self, total: list[Tensor] | None, tally: StepMetrics) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.finished_steps)
        # people who are asleep are no sign that nothing can be learnt
        if total is None and not tally.late:
            self.steps_without_update += 1
            self.untrained.update(tally.untrained)
        if total is not None:
            self.steps_without_update = 0
            self.untrained.clear()
            parameters = self.generator.parameters()
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter.grad = gradient
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.spec.optimizer.max_grad_norm)
            if not norm.isfinite():
                raise NotFinite("the gradient is not finite: lower optimizer.lr, or use bf16 or fp32")
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.add_update()
        self.finished_steps += 1

    # ------------------------------------------------------------ around it

    def check_stop(self) -> None:
        """Stop here when somebody asked for it. Called wherever nothing is half-done, and while waiting."""
        if (asked := self.control()) != "run":
            raise RunStopped("cancelled" if asked == "cancel" else "paused")
        self.processes.check_stop()

    def _stops_early(self) -> bool:
        """Whether `stop_on` ends the run here. Rank 0 knows, and leaves it; the others hear of that as of any end."""
        evaluated = self.spec.stop_on is not None and self.evaluations.is_evaluated(self.finished_steps)
        if evaluated and self.processes.is_main:
            self.early_stop = self.evaluations.find_early_stop()
        return self.early_stop is not None

    def _report_step(self, current: Window, tally: StepMetrics) -> None:
        if not self.processes.is_main:
            return
        for kind, told in self.processes.take_reports():
            self.on_event(kind, told)
        elapsed, steps = time.monotonic() - self.started, self.finished_steps - self.started_at
        figures = {
            **tally.means(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": steps * self.spec.prompts_per_step * self.spec.candidates / elapsed,
            "eta_s": elapsed / steps * (self.spec.steps - self.finished_steps),
            "seconds": current.seconds,
        }
        if self.generator.device.type == "cuda":
            figures["gpu_gib"] = torch.cuda.max_memory_allocated(self.generator.device) / 2**30
        if pending := {name: pending_figures(each) for name, each in self.ranker.list_pending().items()}:
            figures["pending"] = pending
        self.waited_s += current.seconds["wait"]
        finished = job_events.StepFinished(step=self.finished_steps, steps=self.spec.steps, figures=figures)
        # first, for it is refused where the job has become another worker's, who writes into the same folder
        finished.report(self.on_event)
        self.metrics_log.append_step(finished.data())
        if self.recorder is not None:
            self.recorder.write_step(current.step, current.recorded, self.source.rewards_at(current.step))

    def _checkpoint_when_due(self) -> None:
        if (
            self.finished_steps == self.spec.steps
            or self.finished_steps % self.spec.checkpoint_every == 0
            or self.evaluations.is_evaluation_due(self.finished_steps)  # so that the best step has one
            or (self.waited_s > SLOW_CHECKPOINT_S and self.ranker.list_pending())  # what people did is not lost
        ):
            self._write_checkpoint()

    def _resume_run(self) -> None:
        """Go on from the newest checkpoint, which rank 0 alone has, and all from the same.

        Whoever died after writing it may not have said so: it is said again.
        """
        if self.processes.is_main:
            resume_state.remove_partial_checkpoints(self.workdir)
        path = job_layout.newest_checkpoint(self.workdir) if self.processes.is_main else None
        if path is not None:
            state = resume_state.load_checkpoint(path, self.generator, self.optimizer, base=self.base_fingerprint)
            if self.average is not None:
                self.average.load(path, int(state.get("ema_updates", 0)))
            self.finished_steps = self.saved_step = int(state["step"])
            self.steps_without_update = int(state.get("barren", 0))
            self.untrained = Counter(state.get("untrained", {}))
            micro_batches = self.rollout.micro_batches
            # what memory taught
            micro_batches.size = min(micro_batches.size, int(state.get("chunk_size", micro_batches.size)))
        self.finished_steps = self.started_at = self.processes.broadcast_state(
            self.optimizer,
            step=self.finished_steps,
            base=self.base_fingerprint,
            more=() if self.average is None else self.average.tensors,
        )
        told = {"ema_updates": 0 if self.average is None else self.average.updates}
        # those that a step began with, as evaluations ask what was trained on: none begins here
        (first, *_) = self.processes.all_gather({**told, **self._weight_changes(self.spec.steps)})
        self._put_weight_changes(first)
        if self.average is not None:
            self.average.updates = int(first["ema_updates"])
        if path is not None:
            if int(state.get("processes", 0)) == self.processes.size:
                self._restore_windows(path)
            job_events.RunResumed(step=self.finished_steps).report(self.on_event)
            job_events.CheckpointWritten(step=self.finished_steps, path=path.name).report(self.on_event)
        if self.processes.is_main:
            self.metrics_log.remove_steps_after(self.finished_steps)
        self.evaluations.resume_at(self.finished_steps)
        if self.recorder is not None:
            self.recorder.remove_steps_from(self.finished_steps)

    def _take_weight_changes(self) -> None:
        """Have the step that begins here, on all processes, train with what was asked for until now."""
        (first, *_) = self.processes.all_gather(self._weight_changes(self.finished_steps), self.check_stop)
        self._put_weight_changes(first)

    def _weight_changes(self, step: int) -> dict[str, Any]:
        """What rank 0 tells the others of the weights that count from `step`, which is about to begin."""
        changes = self.take_weight_changes(step) if self.processes.is_main else ()
        return {"weight_changes": [each.model_dump(mode="json") for each in changes]}

    def _put_weight_changes(self, told: Mapping[str, Any]) -> None:
        changes = [WeightChange.model_validate(each) for each in told["weight_changes"]]
        if changes:
            self.schedule.changes = changes
            self.ranker.change_rewards(self.schedule.at(self.finished_steps))

    def _restore_windows(self, checkpoint: Path) -> None:
        """Have ranked what was in flight when it was written: the same questions, so those who answer go on."""
        path = checkpoint / job_layout.GROUPS_IN_FLIGHT_FILE
        groups = load_groups(path, self.generator.device)
        self.windows.restore(groups)
        for each in groups:
            assert each.drawn.candidates is not None
            self.ranker.submit(each.drawn.candidates)

    def _save_more(self, checkpoint: Path) -> None:
        """What a checkpoint has beside weights, optimiser and state."""
        if self.average is not None:
            self.average.save(checkpoint)
        self._save_windows(checkpoint)

    def _save_windows(self, checkpoint: Path) -> None:
        if (groups := list(self.windows.groups())) and self.ranker.list_pending():
            save_groups(checkpoint / job_layout.GROUPS_IN_FLIGHT_FILE, groups)

    def _write_checkpoint(self) -> None:
        if self.saved_step == self.finished_steps or not self.processes.is_main:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.generator.parameters()):
            raise NotFinite("the last update made weights that are not finite: lower optimizer.lr")
        self.control()  # raises where the job has become another worker's, who writes into the same folder
        known = ("model", "revision", "precision", "resolution")
        initial = self.spec.initial_checkpoint
        state = {
            **{name: getattr(self.spec, name) for name in known},
            "initial_checkpoint": initial and initial.model_dump(mode="json"),
            "base": self.base_fingerprint,
            "barren": self.steps_without_update,
            "untrained": dict(self.untrained.most_common(MAX_REASONS)),
            "chunk_size": self.rollout.micro_batches.size,
            "processes": self.processes.size,
            **({} if self.average is None else {"ema_updates": self.average.updates}),
        }
        path = resume_state.save_checkpoint(
            self.workdir, self.finished_steps, self.generator, self.optimizer, state, self._save_more
        )
        resume_state.prune_checkpoints(self.workdir, self.spec.keep_checkpoints, self.evaluations.steps_to_keep())
        self.saved_step, self.waited_s = self.finished_steps, 0.0
        job_events.CheckpointWritten(step=self.finished_steps, path=path.name).report(self.on_event)

    def _evaluate_when_due(self) -> None:
        if not self.evaluations.is_scheduled(self.finished_steps):
            return
        (first, *_) = self.processes.all_gather({"due": self.evaluations.is_due(self.finished_steps)})
        if not first["due"]:
            return
        began = time.monotonic()
        with self._evaluated_weights(), tracing.trace_span("evaluation", step=self.finished_steps):
            self.evaluations.evaluate_step(
                self.finished_steps, self.check_stop, self.processes, self.windows.keep_ranked
            )
        self.started += time.monotonic() - began  # images/s and ETA speak of training alone

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        """Inside, the generator has the weights that evaluations score."""
        if self.average is None or self.spec.optimizer.evaluated_weights != "ema":
            return nullcontext()
        return self.average.in_place()


class RunStopped(Exception):
    """`control` asked the run to stop."""

    def __init__(self, outcome: Literal["paused", "cancelled"]) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def pending_figures(found: RankingBacklog) -> dict[str, Any]:
    """What is told of the groups that are pending at a slow reward."""
    oldest = round(max(found.waiting.values(), default=0.0), 1)
    return {"groups": len(found.waiting), "oldest_s": oldest, "per_minute": found.per_minute}


def describe_untrained(steps: int, reasons: Counter[str]) -> str:
    """Why so many steps in a row updated nothing, with the reasons of their groups counted."""
    shown = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common(SHOWN_REASONS))
    rest = len(reasons) - SHOWN_REASONS
    return (
        f"nothing was trained in {steps} steps in a row: of their {reasons.total()} groups "
        f"{shown or 'none gave a gradient'}{f'; and {rest} other reasons' if rest > 0 else ''}. The rewards that are "
        "trained on must tell a prompt's candidates apart; the skipped_group and reward_failure events have more"
    )


def learning_rate(spec: TrainSpec, step: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, constant, linear decay over the last `decay_steps`.

    The last update has 1 / (decay_steps + 1) of the rate, and none after the warm-up less than a twentieth of it.
    """
    knobs = spec.optimizer
    warm = min(1.0, (step + 1) / (knobs.warmup_steps + 1))
    left = (spec.steps - step) / (knobs.decay_steps + 1)
    return knobs.lr * min(warm, max(0.05, min(1.0, left)))
