"""The training loop: generate, have ranked, drift. It never sees the network, only a Ranker.

One optimiser step reads a window of prompts. Within it the weights do not change, so all its groups are generated and
sent at once, and each is turned into gradients when its answer comes, in whichever order. Gradients are then added up
in the order of the prompts, so that arrival order cannot change a bit of the result. `max_staleness` windows may be
generated ahead of the update; with 0, the default, every ranking is of the weights it trains.

    for step:   window ─ generate K images a prompt ─ submit ──┐ (rewards work)
                features of x and x_ref while they do          │
                per answer: order → goals → chunked gradient ←─┘
                sum in order → clip → AdamW

What this loop does not do: compute rewards, keep jobs, talk to queues. METHOD's "one update" gives the steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dipole.errors import NothingToLearn, RewardUnavailable
from dipole_trainer import checkpoint, chunks, evaluate
from dipole_trainer.features import Features
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.groups import Group, RankedGroup, Ranker
from dipole_trainer.methods import drpo
from dipole_trainer.sampling import seeds_for, window
from dipole_trainer.selection import Selection, Skip, Weighted, combine, select, shuffled
from dipole_trainer.spec import PromptSpec, TrainSpec

Outcome = Literal["succeeded", "paused", "cancelled"]
OnEvent = Callable[[str, dict[str, Any]], None]
Control = Callable[[], Literal["run", "pause", "cancel"]]
PROGRESS_EVERY = 8  # evaluated prompts between two events
BARREN_STEPS = 25  # steps without an update after which a job fails rather than pretend to train
POLL_S = 0.5  # how often a waiting loop looks whether it should stop


@dataclass
class _Pending:
    """A group on its way: what is needed to turn its answer into gradients."""

    index: int
    prompt: PromptSpec
    noise: Tensor  # (K, c, h, w)
    x: Tensor  # (K, c, h, w), no graph
    phi: dict[str, Tensor] | None = None
    phi_ref: dict[str, Tensor] | None = None


@dataclass
class _Window:
    """The groups of one step, and what became of them so far."""

    step: int
    drawn_at: int  # updates the generating weights had had: step - drawn_at is the staleness
    groups: dict[str, _Pending]
    ranked: list[RankedGroup] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "wait": 0.0, "update": 0.0})


@dataclass
class _Tally:
    """What a step's event reports."""

    rewards: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, list[float]] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)
    skipped: int = 0


def train(
    spec: TrainSpec,
    generator: OneStepGenerator,
    features: Features,
    rank: Ranker,
    on_event: OnEvent,
    *,
    workdir: Path,
    job_id: str = "job",
    control: Control = lambda: "run",
) -> Outcome:
    """Train from the newest checkpoint under `workdir`, or from the start; see Trainer.run."""
    return Trainer(spec, generator, features, rank, on_event, workdir, job_id, control).run()


class Trainer:
    """One job's run. Construct, then `run`."""

    def __init__(
        self,
        spec: TrainSpec,
        generator: OneStepGenerator,
        features: Features,
        rank: Ranker,
        on_event: OnEvent,
        workdir: Path,
        job_id: str,
        control: Control,
    ) -> None:
        self.spec, self.generator, self.features, self.rank = spec, generator, features, rank
        self.on_event, self.workdir, self.job_id, self.control = on_event, workdir, job_id, control
        knobs = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            generator.parameters(), lr=knobs.lr, betas=knobs.betas, weight_decay=knobs.weight_decay
        )
        self.done = 0  # finished updates
        self.saved: int | None = None  # step of the newest checkpoint
        self.barren = 0  # steps in a row without an update
        self.base: list[evaluate.Scored] | None = None
        self.windows: deque[_Window] = deque()
        self.started, self.started_at = time.monotonic(), 0

    def run(self) -> Outcome:
        """Train to the last step. Returns "paused" or "cancelled" where `control` says so, with a checkpoint written.

        Raises RewardUnavailable, after writing a checkpoint, when a required reward is past its deadline.
        """
        self._resume()
        try:
            self._evaluate_when_due()
            while self.done < self.spec.steps:
                self._heed_control()
                self._step()
                self._checkpoint_when_due()
                self._evaluate_when_due()
            return "succeeded"
        except _Stopped as stopped:
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
        while len(self.windows) <= self.spec.max_staleness and self._next_step() < self.spec.steps:
            self.windows.append(self._generate(self._next_step()))
        current = self.windows.popleft()
        tally, gradients = _Tally(), _OrderedSum(len(current.groups))
        unprepared = deque(current.groups.values())
        while current.groups:
            ranked = current.ranked.pop() if current.ranked else self._collect(current, blocking=not unprepared)
            if ranked is None and unprepared:
                self._prepare(unprepared.popleft())
            elif ranked is not None:
                began = time.monotonic()
                pending = current.groups.pop(ranked.group_id)
                gradients.add(pending.index, self._gradient(pending, ranked, current.step, tally))
                current.seconds["update"] += time.monotonic() - began
            else:
                self._heed_control()
        self._update(gradients)
        self._report(current, tally)

    def _next_step(self) -> int:
        return self.windows[-1].step + 1 if self.windows else self.done

    @torch.no_grad()
    def _generate(self, step: int) -> _Window:
        """Draw every group of a step and send it off."""
        began = time.monotonic()
        groups = {}
        for index, prompt in enumerate(window(self.spec.prompts, step, self.spec.prompts_per_step, self.spec.seed)):
            seeds = seeds_for(self.spec.seed, step, index, count=self.spec.candidates)
            noise = self.generator.noise(seeds)
            x = chunks.mapped(partial(self.generator, prompt=prompt.prompt), noise, self.spec.chunk_size)
            images = np.concatenate(
                [self.generator.decode(x[rows]) for rows in chunks.slices(len(x), self.spec.chunk_size)]
            )
            group = Group(f"{self.job_id}.{step}.{index}", step, prompt.prompt, prompt.metadata, images, seeds)
            self.rank.submit(group)
            groups[group.id] = _Pending(index, prompt, noise, x)
        drawn = _Window(step, self.done, groups)
        drawn.seconds["generate"] = time.monotonic() - began
        return drawn

    @torch.no_grad()
    def _prepare(self, pending: _Pending) -> None:
        """Features of the samples and of the base's on the same noises: work for the time the rewards take."""
        if pending.phi is None:
            size = self.spec.chunk_size
            base = chunks.mapped(partial(self.generator.reference, prompt=pending.prompt.prompt), pending.noise, size)
            pending.phi = chunks.featured(self.features, pending.x, size)
            pending.phi_ref = chunks.featured(self.features, base, size)

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

    def _gradient(self, pending: _Pending, ranked: RankedGroup, step: int, tally: _Tally) -> list[Tensor] | None:
        """The group's gradient, one tensor a parameter; None when it cannot be trained on."""
        chosen = self._order(pending, ranked, step, tally)
        if isinstance(chosen, Skip):
            tally.skipped += 1
            self.on_event("skipped_group", {"step": step, "group": ranked.group_id, "reason": chosen.reason})
            return None
        self._prepare(pending)
        assert pending.phi is not None
        assert pending.phi_ref is not None
        goals = drpo.goals(pending.phi, pending.phi_ref, chosen, self.spec.method.drpo)
        tally.losses.append(goals.values())
        parts = chunks.slices(self.spec.candidates, self.spec.chunk_size)
        noise, prompt = pending.noise, pending.prompt.prompt
        return goals.gradient(
            lambda rows: self.features(self.generator(noise[rows], prompt)),
            self.generator.parameters(),
            parts,
            scale=1 / self.spec.prompts_per_step,
        )

    def _order(self, pending: _Pending, ranked: RankedGroup, step: int, tally: _Tally) -> Selection | Skip:
        """Combine the rewards' answers and choose what attracts and repels."""
        weighted = {}
        for reward in self.spec.rewards:
            result = ranked.results[reward.name]
            values = [score for score in result.scores if score is not None]
            if result.failure is not None:
                data = {"step": step, "reward": reward.name, "group": ranked.group_id, "reason": result.failure}
                self.on_event("reward_failure", data)
                continue
            if not result.ordinal:  # ranks compare only within their group: their mean tells nothing
                tally.rewards.setdefault(reward.name, []).append(float(np.mean(values)))
                tally.spread.setdefault(reward.name, []).append(float(np.std(values)))
            how = "rank" if result.ordinal else reward.normalize
            weighted[reward.name] = Weighted(result.scores, reward.weight, how)
        for reward in self.spec.rewards:
            if reward.required and reward.weight > 0 and reward.name not in weighted:
                return Skip(f"required reward {reward.name}: {ranked.results[reward.name].failure}")
        if not any(reward.weight > 0 for reward in weighted.values()):
            return Skip("no trained reward gave a ranking")
        total = combine(weighted)
        if self.spec.method.drpo.shuffle_ranks:
            (seed,) = seeds_for(self.spec.seed, "shuffle", step, pending.index, count=1)
            total = shuffled(total, np.random.default_rng(seed))
        return select(total, self.spec.method.drpo.positives, self.spec.method.drpo.negatives)

    def _update(self, gradients: _OrderedSum) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.done)
        self.barren = self.barren + 1 if gradients.total is None else 0
        if self.barren == BARREN_STEPS:
            raise NothingToLearn(
                f"{BARREN_STEPS} steps in a row had no group to train on: a trained reward is failing, or gives every "
                "candidate the same score; the skipped_group and reward_failure events say which"
            )
        if gradients.total is not None:
            parameters = self.generator.parameters()
            for parameter, gradient in zip(parameters, gradients.total, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, self.spec.optimizer.max_grad_norm, error_if_nonfinite=True)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    # ------------------------------------------------------------ around it

    def _report(self, current: _Window, tally: _Tally) -> None:
        elapsed, steps = time.monotonic() - self.started, self.done - self.started_at
        preference = [value for value, _ in tally.losses]
        reference = [value for _, value in tally.losses]
        data = {
            "step": self.done,
            "steps": self.spec.steps,
            "loss": _mean([value + self.spec.method.drpo.ref_lambda * pull for value, pull in tally.losses]),
            "drift_pref": _mean(preference),
            "drift_ref": _mean(reference),
            "lr": self.optimizer.param_groups[0]["lr"],
            "rewards": {name: _mean(values) for name, values in tally.rewards.items()},
            "spread": {name: _mean(values) for name, values in tally.spread.items()},
            "skipped": tally.skipped,
            "staleness": current.step - current.drawn_at,
            "images_per_s": steps * self.spec.prompts_per_step * self.spec.candidates / elapsed,
            "eta_s": elapsed / steps * (self.spec.steps - self.done),
            "seconds": current.seconds,
        }
        self.on_event("step", data)

    def _heed_control(self) -> None:
        """Stop here when somebody asked for it. Called wherever nothing is half-done."""
        if (order := self.control()) != "run":
            raise _Stopped("cancelled" if order == "cancel" else "paused")

    def _checkpoint_when_due(self) -> None:
        if self.done == self.spec.steps or self.done % self.spec.checkpoint_every == 0:
            self._checkpoint()

    def _resume(self) -> None:
        """Go on from the newest checkpoint. Whoever died after writing it may not have said so: it is said again."""
        path = checkpoint.newest(self.workdir)
        if path is not None:
            state = checkpoint.load(path, self.generator, self.optimizer)
            self.done = self.started_at = self.saved = int(state["step"])
            self.on_event("resumed", {"step": self.done})
            self.on_event("checkpoint", {"step": self.done, "path": path.name})
        evaluate.forget_after(self.workdir, self.done)
        before = self.workdir / "evaluation/step-0.json"
        if before.is_file():
            self.base = evaluate.read(before)

    def _checkpoint(self) -> None:
        if self.saved == self.done:
            return
        path = checkpoint.save(self.workdir, self.done, self.generator, self.optimizer, {"model": self.spec.model})
        checkpoint.prune(self.workdir, self.spec.keep_checkpoints)
        self.saved = self.done
        self.on_event("checkpoint", {"step": self.done, "path": path.name})

    def _evaluate_when_due(self) -> None:
        """Before the first step, after the last, and every `evaluation.every` between; never twice for one step."""
        due = self.done in (0, self.spec.steps) or (
            self.spec.evaluation.every and self.done % self.spec.evaluation.every == 0
        )
        name = f"evaluation/step-{self.done}.json"
        if not due or not self.spec.evaluation.prompts or (self.workdir / name).is_file():
            return
        self._drop_windows()

        def progress(count: int, total: int) -> None:
            if count % PROGRESS_EVERY == 0 or count == total:
                self.on_event("evaluating", {"step": self.done, "prompts_done": count, "prompts": total})

        began = time.monotonic()
        scored, sheet = evaluate.evaluate(
            self.spec.evaluation,
            self.generator,
            self.features,
            self.rank,
            step=self.done,
            job_id=self.job_id,
            on_progress=progress,
            heed=self._heed_control,
        )
        figures = evaluate.summary(scored, self.base)
        evaluate.write_sheet(self.workdir / "samples", self.done, sheet, [item.prompt for item in scored])
        evaluate.write(self.workdir / "evaluation", self.done, scored, figures)
        if self.done == 0:
            self.base = scored
        self.on_event("samples", {"step": self.done, "path": f"samples/step-{self.done}.png"})
        self.on_event("evaluation", {"step": self.done, "path": name, **figures, "seconds": time.monotonic() - began})
        self._warn_of_hacking(figures)
        self.started += time.monotonic() - began  # images/s and ETA speak of training alone

    def _warn_of_hacking(self, figures: Mapping[str, Any]) -> None:
        trained = [reward.name for reward in self.spec.rewards if reward.weight > 0]
        held_out = [reward.name for reward in self.spec.rewards if reward.weight == 0]
        found = evaluate.hacking(figures, trained, held_out)
        if found:
            self.on_event("reward_hacking", {"step": self.done, **found})

    def _drop_windows(self) -> None:
        """Forget windows generated ahead; they are drawn again, from the same seeds."""
        self.rank.cancel()
        self.windows.clear()


class _Stopped(Exception):
    """`control` asked the run to stop."""

    def __init__(self, outcome: Literal["paused", "cancelled"]) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class _OrderedSum:
    """Adds up gradients in the order of their index as they come, holding back only those that came early."""

    def __init__(self, count: int) -> None:
        self.total: list[Tensor] | None = None
        self._early: dict[int, list[Tensor] | None] = {}
        self._next, self._count = 0, count

    def add(self, index: int, gradient: list[Tensor] | None) -> None:
        self._early[index] = gradient
        while self._next in self._early:
            value = self._early.pop(self._next)
            self._next += 1
            if value is not None:
                self.total = value if self.total is None else [a + b for a, b in zip(self.total, value, strict=True)]


def learning_rate(spec: TrainSpec, step: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, constant, linear decay to a twentieth at the end."""
    knobs = spec.optimizer
    warm = min(1.0, (step + 1) / (knobs.warmup_steps + 1))
    left = (spec.steps - step) / (knobs.decay_steps + 1)
    return knobs.lr * min(warm, max(0.05, min(1.0, left)))


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
