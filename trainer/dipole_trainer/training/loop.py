"""The training loop: draw, have ranked, update. It never sees the network, only a Source and its Ranker.

One optimiser step reads a window of prompts. Within it the weights do not change, so all its groups are drawn and sent
at once, and each is turned into gradients when its answer comes, in whichever order. Gradients are then added up in the
order of the prompts, so that arrival order cannot change a bit of the result. `max_staleness` windows may be drawn
ahead of the update; with 0, the default, every ranking is of the weights it trains.

    for step:   window ─ K samples a prompt ─ submit ──┐ (rewards work)
                features of x and x_ref while they do  │
                per answer: order → loss → gradient  ←─┘
                sum in order, then over processes → clip → AdamW

What this loop does not do: compute rewards, keep jobs, talk to queues, know a method. METHOD's "one update" gives the
steps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dipole.errors import NothingToLearn, RewardUnavailable
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.distributed.group import World
from dipole_trainer.evaluation.schedule import Evaluations
from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.ranking.selection import Skip, order
from dipole_trainer.seeds import seeds_for
from dipole_trainer.spec import DpoSpec, DrpoSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training.candidate_recorder import Recorder
from dipole_trainer.training.gradient_sum import OrderedSum
from dipole_trainer.training.group_sources import Source
from dipole_trainer.training.interface import Control, OnEvent, Outcome
from dipole_trainer.training.rollout import Drawn, Rollout
from dipole_trainer.training.step_metrics import Tally

BARREN_STEPS = 25  # steps without an update after which a job fails rather than pretend to train
POLL_S = 0.5  # how often a waiting loop looks whether it should stop


@dataclass
class _Window:
    """The groups of one step, and what became of them so far."""

    step: int
    drawn_at: int  # updates the weights that drew it had had: step - drawn_at is the staleness
    groups: dict[str, Drawn]
    ranked: list[RankedGroup] = field(default_factory=list)
    recorded: list[dict[str, Any]] = field(default_factory=list)  # what the recorder is to keep
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "wait": 0.0, "update": 0.0})


class Trainer:
    """One job's run on one process of its world. Construct, then `run`."""

    def __init__(
        self,
        spec: TrainSpec,
        rollout: Rollout,
        source: Source,
        evaluations: Evaluations,
        on_event: OnEvent,
        *,
        workdir: Path,
        control: Control,
        world: World,
        recorder: Recorder | None = None,
    ) -> None:
        self.spec, self.rollout, self.source, self.evaluations = spec, rollout, source, evaluations
        self.recorder = recorder
        self.generator, self.rank = rollout.generator, source.rank
        self.on_event, self.workdir, self.control, self.world = on_event, workdir, control, world
        knobs = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=knobs.lr, betas=knobs.betas, weight_decay=knobs.weight_decay
        )
        self.base = resume_state.fingerprint(self.generator)
        self.done = 0  # finished updates
        self.saved: int | None = None  # step of the newest checkpoint
        self.barren = 0  # steps in a row without an update
        self.windows: deque[_Window] = deque()
        self.started, self.started_at = time.monotonic(), 0

    def run(self) -> Outcome:
        """Train to the last step. Returns "paused" or "cancelled" where `control` says so, with a checkpoint written.

        Raises RewardUnavailable, after writing a checkpoint, when a required reward is past its deadline. On all but
        rank 0 it never returns: world.py says what it raises.
        """
        if self.generator.device.type == "cuda":  # or `gpu_gib` is that of this process's largest job so far
            torch.cuda.reset_peak_memory_stats(self.generator.device)
        try:
            self._resume()
            self._evaluate_when_due()
            while self.done < self.spec.steps:
                self._step()
                self._checkpoint_when_due()
                self._evaluate_when_due()
            self.world.retire()
            return "succeeded"
        except Stopped as stopped:
            self._checkpoint()
            return stopped.outcome
        except RewardUnavailable:
            self._checkpoint()
            raise
        finally:
            self.rank.cancel()

    # ------------------------------------------------------------ one update

    def _step(self) -> None:
        """One optimiser step. Stopped half-way, it has changed nothing."""
        self.heed()
        while len(self.windows) <= self.spec.max_staleness and self._next_step() < self.spec.steps:
            self.windows.append(self._draw(self._next_step()))
        current, tally = self.windows.popleft(), Tally()
        total = self._gradients(current, tally)
        self._update(self._summed(total, tally, current))
        self._report(current, tally)

    def _next_step(self) -> int:
        return self.windows[-1].step + 1 if self.windows else self.done

    def _draw(self, step: int) -> _Window:
        """Draw this process's groups of a step and send them off."""
        began = time.monotonic()
        drawn = _Window(step, self.done, self.source.draw(step))
        drawn.seconds["generate"] = time.monotonic() - began
        return drawn

    def _gradients(self, current: _Window, tally: Tally) -> list[Tensor] | None:
        """The sum of the groups' gradients, as answers come; features are taken while they do not."""
        indices = [drawn.index for drawn in current.groups.values()]
        gradients = OrderedSum(indices, lazy=self.spec.tune == "full")
        unprepared = deque(current.groups.values())
        while current.groups:
            ranked = self._collect(current, blocking=not (unprepared or current.ranked))
            if ranked is None and current.ranked:
                ranked = current.ranked.pop()
            if ranked is None and unprepared:
                self.rollout.prepare(unprepared.popleft())
            elif ranked is not None:
                began = time.monotonic()
                drawn = current.groups.pop(ranked.group_id)
                gradients.add(drawn.index, partial(self._gradient, drawn, ranked, current, tally))
                current.seconds["update"] += time.monotonic() - began
            else:
                self.heed()
        return gradients.total

    def _collect(self, current: _Window, *, blocking: bool) -> RankedGroup | None:
        """The next answer for the current window; answers for later windows are kept there."""
        began = time.monotonic()
        ranked = self.rank.collect(POLL_S if blocking else 0.0)
        current.seconds["wait"] += time.monotonic() - began
        if ranked is None or ranked.group_id in current.groups:
            return ranked
        for later in self.windows:
            if ranked.group_id in later.groups:
                later.ranked.append(ranked)
        return None

    def _gradient(self, drawn: Drawn, ranked: RankedGroup, current: _Window, tally: Tally) -> list[Tensor] | None:
        """The group's gradient, one tensor a parameter; None when it cannot be trained on."""
        for name, result in ranked.results.items():
            if result.failure is not None:
                told = {"step": current.step, "reward": name, "group": ranked.group_id, "reason": result.failure}
                self.on_event("reward_failure", told)
        tally.ranked(ranked, self.source.rewards)
        if self.recorder is not None:
            current.recorded.append(self.recorder.entry(drawn, ranked))
        settings = self.spec.method.settings
        sides = settings if isinstance(settings, DrpoSpec | DpoSpec) else DpoSpec(positives=1, negatives=1)
        shuffle = None
        if self.rollout.method.shuffled:
            (seed,) = seeds_for(self.spec.seed, "shuffle", current.step, drawn.index, count=1)
            shuffle = np.random.default_rng(seed)
        found = order(
            ranked, self.source.rewards, positives=sides.positives, negatives=sides.negatives, shuffle=shuffle
        )
        if isinstance(found, Skip):
            tally.skipped += 1
            told = {"step": current.step, "group": ranked.group_id, "reason": found.reason}
            self.on_event("skipped_group", told)
            return None
        loss, gradient = self.rollout.gradient(drawn, found, fresh=current.drawn_at == self.done)
        tally.loss(loss.total.item(), loss.parts)
        return gradient

    def _summed(self, total: list[Tensor] | None, tally: Tally, current: _Window) -> list[Tensor] | None:
        """Over processes, once all have done their share; one without a group to train on adds nothing."""
        share = {"tally": tally.plain(), "trained": total is not None, "recorded": current.recorded}
        told = self.world.exchange(share, self.heed)
        current.recorded = [entry for other in told for entry in other["recorded"]]
        for rank, other in enumerate(told):
            if rank != self.world.rank:
                tally.add(other["tally"])
        if not any(other["trained"] for other in told):
            return None
        total = total or [torch.zeros_like(parameter) for parameter in self.generator.parameters()]
        self.world.sum_(total)
        return total

    def _update(self, total: list[Tensor] | None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.done)
        self.barren = self.barren + 1 if total is None else 0
        if self.barren == BARREN_STEPS:
            raise NothingToLearn(
                f"{BARREN_STEPS} steps in a row had no group to train on: a trained reward is failing, or gives every "
                "candidate the same score; the skipped_group and reward_failure events say which"
            )
        if total is not None:
            parameters = self.generator.parameters()
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter.grad = gradient
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.spec.optimizer.max_grad_norm)
            if not norm.isfinite():
                raise FloatingPointError("the gradient is not finite: lower optimizer.lr, or use bf16 or fp32")
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    # ------------------------------------------------------------ around it

    def heed(self) -> None:
        """Stop here when somebody asked for it. Called wherever nothing is half-done, and while waiting."""
        if (asked := self.control()) != "run":
            raise Stopped("cancelled" if asked == "cancel" else "paused")
        self.world.heed()

    def _report(self, current: _Window, tally: Tally) -> None:
        if not self.world.leads:
            return
        for kind, told in self.world.events():
            self.on_event(kind, told)
        if self.recorder is not None:
            self.recorder.write(current.step, current.recorded)
        elapsed, steps = time.monotonic() - self.started, self.done - self.started_at
        data = {
            "step": self.done,
            "steps": self.spec.steps,
            **tally.means(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "staleness": current.step - current.drawn_at,
            "images_per_s": steps * self.spec.prompts_per_step * self.spec.candidates / elapsed,
            "eta_s": elapsed / steps * (self.spec.steps - self.done),
            "seconds": current.seconds,
        }
        if self.generator.device.type == "cuda":
            data["gpu_gib"] = torch.cuda.max_memory_allocated(self.generator.device) / 2**30
        self.on_event("step", data)

    def _checkpoint_when_due(self) -> None:
        if (
            self.done == self.spec.steps
            or self.done % self.spec.checkpoint_every == 0
            or self.evaluations.due(self.done)  # so that the best step has one
        ):
            self._checkpoint()

    def _resume(self) -> None:
        """Go on from the newest checkpoint, which rank 0 alone has, and all from the same.

        Whoever died after writing it may not have said so: it is said again.
        """
        if self.world.leads:
            resume_state.sweep(self.workdir)
        path = job_layout.newest(self.workdir) if self.world.leads else None
        if path is not None:
            state = resume_state.load(path, self.generator, self.optimizer, base=self.base)
            self.done = self.saved = int(state["step"])
            self.barren = int(state.get("barren", 0))
            chunks = self.rollout.chunks
            chunks.size = min(chunks.size, int(state.get("chunk_size", chunks.size)))  # what memory taught
        self.done = self.started_at = self.world.align(self.optimizer, step=self.done, base=self.base)
        if path is not None:
            self.on_event("resumed", {"step": self.done})
            self.on_event("checkpoint", {"step": self.done, "path": path.name})
        self.evaluations.resume(self.done)
        if self.recorder is not None:
            self.recorder.forget_from(self.done)

    def _checkpoint(self) -> None:
        if self.saved == self.done or not self.world.leads:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.generator.parameters()):
            raise FloatingPointError("the last update made weights that are not finite: lower optimizer.lr")
        known = ("model", "revision", "precision", "resolution")
        state = {
            **{name: getattr(self.spec, name) for name in known},
            "base": self.base,
            "barren": self.barren,
            "chunk_size": self.rollout.chunks.size,
        }
        path = resume_state.save(self.workdir, self.done, self.generator, self.optimizer, state)
        best = self.evaluations.best()
        resume_state.prune(self.workdir, self.spec.keep_checkpoints, best[0] if best else None)
        self.saved = self.done
        self.on_event("checkpoint", {"step": self.done, "path": path.name})

    def _evaluate_when_due(self) -> None:
        if not self.evaluations.scheduled(self.done):
            return
        (first, *_) = self.world.exchange({"due": self.evaluations.due(self.done)})
        if not first["due"]:
            return
        self.rank.cancel()  # windows drawn ahead are forgotten, and drawn again from the same seeds
        self.windows.clear()
        began = time.monotonic()
        self.evaluations.run(self.done, self.heed, self.world)
        self.started += time.monotonic() - began  # images/s and ETA speak of training alone


class Stopped(Exception):
    """`control` asked the run to stop."""

    def __init__(self, outcome: Literal["paused", "cancelled"]) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def learning_rate(spec: TrainSpec, step: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, constant, linear decay over the last `decay_steps`.

    The last update has 1 / (decay_steps + 1) of the rate, and none after the warm-up less than a twentieth of it.
    """
    knobs = spec.optimizer
    warm = min(1.0, (step + 1) / (knobs.warmup_steps + 1))
    left = (spec.steps - step) / (knobs.decay_steps + 1)
    return knobs.lr * min(warm, max(0.05, min(1.0, left)))
