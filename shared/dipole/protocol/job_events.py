"""The events of a job: one type a kind, with what it says in a sentence, its level and its data.

Whoever trains reports `kind` and `data`, which is JSON and travels between processes and into the database; whoever
shows them (REST, command line, pages) finds the kinds here. The store writes what becomes of a job in the same way.

    StepFinished(step=3, steps=60, figures={"loss": 0.1}).report(on_event)    # on_event("step", {"step": 3, ...})
    describe_event("step", data)                               # "Step 3/60: training loss 0.1", "info"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

EventLevel = Literal["info", "warn", "error"]
OnEvent = Callable[[str, dict[str, Any]], None]


def in_text_only() -> Any:
    """A field that feeds the sentence and is not stored: what it says stands elsewhere in the job."""
    return field(metadata={"stored": False})


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Base class. `message` is a format string of the data; `has_figures`: its data are numbers to plot."""

    kind: ClassVar[str]
    message: ClassVar[str]
    level: ClassVar[EventLevel] = "info"
    has_figures: ClassVar[bool] = False

    figures: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else there is to say; it stands in `data` beside the fields."""

    def data(self) -> dict[str, Any]:
        """What is stored and sent: the fields but those that are only in the sentence, and `figures` beside them."""
        stored = [each.name for each in fields(self) if each.name != "figures" and each.metadata.get("stored", True)]
        return {**{name: getattr(self, name) for name in stored}, **self.figures}

    def text(self) -> str:
        """What it says, in a sentence."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "figures"}
        return format_message(self.message, {**named, **self.figures}, _name_kind(self.kind))

    def report(self, on_event: OnEvent) -> None:
        on_event(self.kind, self.data())


# ---- what a training session reports --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepFinished(JobEvent):
    """`figures`: the loss and its parts, rewards and their spread by name, skipped groups, kept graphs, lr, rate, ETA,
    seconds.
    """

    kind = "step"
    message = "Step {step}/{steps}: training loss {loss}"
    has_figures = True
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(JobEvent):
    """`path` is relative to the job's folder; the store adds the checkpoint's id."""

    kind = "checkpoint"
    message = "Checkpoint at step {step}"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class WeightsChanged(JobEvent):
    """Rewards weigh otherwise from the update after `step` on. `weights`: {reward: {old, new}}."""

    kind = "weights_changed"
    message = "Weights changed after step {step}: {what}"
    step: int
    weights: Mapping[str, Mapping[str, float]]

    def text(self) -> str:
        what = ", ".join(f"{name} {each['old']:g} → {each['new']:g}" for name, each in self.weights.items())
        return format_message(self.message, {"step": self.step, "what": what}, _name_kind(self.kind))


@dataclass(frozen=True, kw_only=True)
class WeightsNotChanged(JobEvent):
    """The job ended before a step began with them. `weights`: by reward, what was asked for last."""

    kind = "weights_not_changed"
    message = "No step began with the weights that were asked for last ({what}): the job has ended"
    level = "warn"
    weights: Mapping[str, float]

    def text(self) -> str:
        what = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        return format_message(self.message, {"what": what}, _name_kind(self.kind))


@dataclass(frozen=True, kw_only=True)
class RunResumed(JobEvent):
    kind = "resumed"
    message = "Going on from the checkpoint at step {step}"
    step: int


@dataclass(frozen=True, kw_only=True)
class EvaluationProgress(JobEvent):
    kind = "evaluating"
    message = "Evaluating at step {step}: {prompts_done} of {prompts} prompts"
    step: int
    prompts_done: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class EvaluationFinished(JobEvent):
    """`figures`: scores by name, categories, diversities, seconds; `path` has every score behind them."""

    kind = "evaluation"
    message = "Evaluation at step {step}"
    has_figures = True
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class SamplesWritten(JobEvent):
    kind = "samples"
    message = "Samples at step {step}"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class BestStepFound(JobEvent):
    kind = "best"
    message = "The best is step {step}: {score} {value}"
    step: int
    score: str
    value: float


@dataclass(frozen=True, kw_only=True)
class FileExported(JobEvent):
    kind = "export"
    message = "LoRA written to {path}"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class ReportWritten(JobEvent):
    """Of a job that ends as `status`: one page with all that came of it; `path` is relative to the job's folder."""

    kind = "report"
    message = "Report written to {path}: it opens in a browser"
    path: str
    status: str


@dataclass(frozen=True, kw_only=True)
class RewardHackingFound(JobEvent):
    """`figures`: `what` in a sentence, and the scores that rose and fell."""

    kind = "reward_hacking"
    message = "Reward hacking: {what}"
    level = "warn"
    step: int


@dataclass(frozen=True, kw_only=True)
class StoppedEarly(JobEvent):
    """A job with `stop_on` has ended itself: the checkpoint of step `kept` is exported, and later ones are removed."""

    kind = "stopped_early"
    message = "Stopped at step {step} of {steps}, {reason}"
    level = "warn"
    step: int
    steps: int
    kept: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RewardLeftOut(JobEvent):
    """Of a step's group, or of an evaluation's."""

    kind = "reward_failure"
    message = "Reward {reward} was left out of a group: {reason}"
    level = "warn"
    step: int
    reward: str
    group: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RewardUnverified(JobEvent):
    """Told of a reward once a run: nobody has compared its weights' scores with the published implementation's."""

    kind = "reward_unverified"
    message = (
        "Reward {reward} is unverified: nobody has compared the scores of {model} at {revision} with those of its "
        "published implementation; `dipole rewards verify` does, where it is served"
    )
    level = "warn"
    reward: str
    model: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class LatentsSent(JobEvent):
    """Told of a reward once a run: it has the model's VAE, and candidates are decoded where it is."""

    kind = "latents_sent"
    message = "Reward {reward} takes this model's latents: candidates are decoded there, and not here for its sake"
    reward: str


@dataclass(frozen=True, kw_only=True)
class LatentsNotSent(JobEvent):
    """Told of a reward once a run: it takes latents, but of another VAE or precision, so it is sent images."""

    kind = "latents_not_sent"
    message = (
        "Reward {reward} is sent images: {reason}, and this job's are of another; serve it with this model's VAE "
        "(DIPOLE_REWARD_VAE) in the job's precision (DIPOLE_REWARD_VAE_DTYPE)"
    )
    level = "warn"
    reward: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DecoderChecked(JobEvent):
    """Of a job with `reward_decoder: tiny`: a group was ranked on the VAE's images too. `tau` is Kendall's of all
    candidates, `overlap` the share of the chosen that both choose.
    """

    kind = "decoder_checked"
    message = "The tiny decoder's images rank like the VAE's: Kendall's tau {tau}, {overlap} of those chosen in common"
    step: int
    tau: float
    overlap: float


@dataclass(frozen=True, kw_only=True)
class DecoderDisagrees(JobEvent):
    """Told when the mean of the last `checks` falls below the least that is good, and again after it has risen."""

    kind = "decoder_disagrees"
    message = (
        "The tiny decoder's images do not rank like the VAE's any more: Kendall's tau is {tau} over the last {checks} "
        "checks; reward_decoder vae trains on what the rewards would truly say"
    )
    level = "warn"
    step: int
    tau: float
    checks: int


@dataclass(frozen=True, kw_only=True)
class ScoresReused(JobEvent):
    """Since the last event of it: groups that a reward was not asked to rank, as it had ranked equal ones before.

    `seconds` is how long it took when it was asked.
    """

    kind = "scores_reused"
    message = "Reward {reward} had ranked {groups} of the groups before, in {seconds} s: it was not asked again"
    reward: str
    groups: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RewardSilent(JobEvent):
    """An optional reward let a deadline pass and answered nothing meanwhile: told once, and not of each group."""

    kind = "reward_silent"
    message = "Reward {reward} is silent: groups go on without it until it answers again ({reason})"
    level = "warn"
    step: int
    reward: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RewardAnswersAgain(JobEvent):
    kind = "reward_answers_again"
    message = "Reward {reward} answers again: groups wait for it"
    step: int
    reward: str


@dataclass(frozen=True, kw_only=True)
class RankingsPending(JobEvent):
    """Training waits for rankings that an endpoint takes its time for, as people do (202).

    `groups` are pending at this reward, over all steps that are drawn; the oldest since `oldest_s` seconds.
    `step_groups` of them are the next update's, `expected_s` when they should be there, by the rate so far;
    both None while there is none.
    """

    kind = "rankings_pending"
    message = "Waiting for {reward}: {groups} groups, the oldest for {oldest_s} s; {per_minute} a minute so far"
    step: int
    reward: str
    groups: int
    step_groups: int
    oldest_s: float
    per_minute: float | None
    expected_s: float | None


@dataclass(frozen=True, kw_only=True)
class GroupSkipped(JobEvent):
    """`code`: too_few_scores, no_spread, reward_failed, no_ranking, no_scores_to_gate or none_passes."""

    kind = "skipped_group"
    message = "A group was skipped: {reason}"
    level = "warn"
    step: int
    group: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CandidatesNotFinite(JobEvent):
    """The first group that has any; the steps' `not_finite` counts them all."""

    kind = "candidates_not_finite"
    message = "{count} of {candidates} candidates of a group are left out, as others will be: {reason}"
    level = "warn"
    step: int
    group: str
    count: int
    candidates: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class PromptsCut(JobEvent):
    """Prompts that are longer than the model's text encoder reads. `unread` is the end of `example`."""

    kind = "prompts_cut"
    message = (
        "{count} of {prompts} prompts are longer than the {limit} tokens that the model's text encoder reads; rewards "
        "judge the whole text. Of {example!r} the model never reads {unread!r}"
    )
    level = "warn"
    count: int
    prompts: int
    limit: int
    example: str
    unread: str


@dataclass(frozen=True, kw_only=True)
class SchedulerChanged(JobEvent):
    kind = "scheduler_changed"
    message = "Advice: {what}"
    level = "warn"
    what: str


@dataclass(frozen=True, kw_only=True)
class MemoryRanOut(JobEvent):
    kind = "out_of_memory"
    message = "Out of memory: {chunk_size} samples are worked on at once from here on"
    level = "warn"
    chunk_size: int


@dataclass(frozen=True, kw_only=True)
class GraphsGivenUp(JobEvent):
    """As with `memory: lean` from here on."""

    kind = "graphs_given_up"
    message = "Out of memory: graphs are kept no longer, and samples are drawn again for their gradient from here on"
    level = "warn"


@dataclass(frozen=True, kw_only=True)
class PrecisionChosen(JobEvent):
    """What the frozen base computes in, at each start of the run; `device` is cuda or cpu."""

    kind = "precision"
    message = "Computing in {precision} on {device}: {why}"
    precision: str
    device: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PrecisionKept(JobEvent):
    """A run goes on where a new one would compute in another precision, `default`."""

    kind = "precision_kept"
    message = (
        "Computing in {precision} on {device}, as the run began on {began_on}: a job that names no precision keeps its "
        "first, and a new one would take {default} here"
    )
    level = "warn"
    precision: str
    device: str
    began_on: str
    default: str


@dataclass(frozen=True, kw_only=True)
class PrecisionIsSlow(JobEvent):
    kind = "slow_precision"
    message = "Advice: {what}"
    level = "warn"
    what: str


@dataclass(frozen=True, kw_only=True)
class AcceleratorLost(JobEvent):
    kind = "accelerator_lost"
    message = "The GPU computes nothing more in this worker, which starts anew: {reason}"
    level = "warn"
    reason: str


# ---- what becomes of a job ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobCreated(JobEvent):
    kind = "created"
    message = "Job created: {steps} steps on {prompts} prompts"
    steps: int = in_text_only()
    prompts: int = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobCreatedForDefaultSteps(JobCreated):
    """`steps` were not given, and follow from the prompts."""

    message = (
        "Job created: {steps} steps on {prompts} prompts, which draw each about {draws} times; steps are not given, "
        "and follow from the number of prompts"
    )
    draws: float = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobWarned(JobEvent):
    """What the caller was told when the job was created, or its run found out."""

    kind = "warning"
    message = "Warning: {warning}"
    level = "warn"
    warning: str


@dataclass(frozen=True, kw_only=True)
class JobQueued(JobEvent):
    kind = "queued"
    message = "{reason}"
    reason: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobStarted(JobEvent):
    """`fence` is the lease's number, which grows with every claim."""

    kind = "running"
    message = "Training"
    worker: str
    fence: int


@dataclass(frozen=True, kw_only=True)
class PauseRequested(JobEvent):
    kind = "pause_requested"
    message = "Pause asked for: stops at the next step"


@dataclass(frozen=True, kw_only=True)
class CancelRequested(JobEvent):
    kind = "cancel_requested"
    message = "Cancel asked for: stops at the next step"


@dataclass(frozen=True, kw_only=True)
class LeaseExpired(JobEvent):
    kind = "lease_expired"
    message = "Worker {worker} has gone silent"
    level = "warn"
    worker: str | None = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobReleased(JobEvent):
    """Given back unfinished; `state` is what the job is in then."""

    kind = "released"
    message = "Job {state}: {reason}"
    state: str = in_text_only()
    reason: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobPaused(JobEvent):
    kind = "paused"
    message = "Job paused: {reason}"
    reason: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobWaitsForReward(JobEvent):
    """A pause of ours, and not of a caller: a required reward is away."""

    kind = "paused"
    message = "Paused: reward {reward} is unavailable ({reason}); {then}"
    level = "warn"
    reward: str
    reason: str
    then: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobWaitsForStorage(JobEvent):
    """A pause of ours, and not of a caller: a disk is full, or the artifact store is away."""

    kind = "paused"
    message = "Paused: the job's files cannot be kept ({reason}); {then}"
    level = "warn"
    reason: str
    then: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobSucceeded(JobEvent):
    kind = "succeeded"
    message = "Job succeeded"


@dataclass(frozen=True, kw_only=True)
class JobCancelled(JobEvent):
    """A worker stopped for it."""

    kind = "cancelled"
    message = "Job cancelled"


@dataclass(frozen=True, kw_only=True)
class UnheldJobCancelled(JobEvent):
    """`reason` says why no worker had to stop for it."""

    kind = "cancelled"
    message = "Job cancelled: {reason}"
    reason: str = in_text_only()


@dataclass(frozen=True, kw_only=True)
class JobFailed(JobEvent):
    """`figures`: the job's `error`, where one is known."""

    kind = "failed"
    message = "Job failed: {message}"
    level = "error"

    def text(self) -> str:
        return super().text() if "message" in self.figures else "Job failed"


@dataclass(frozen=True, kw_only=True)
class WebhookDelivered(JobEvent):
    """The URL may be a secret, so its host alone is told."""

    kind = "webhook_delivered"
    message = "The webhook to {host} was delivered"
    webhook: str
    host: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class WebhookGivenUp(JobEvent):
    kind = "webhook_given_up"
    message = "The webhook to {host} was given up after {attempts} attempts: {reason}"
    level = "warn"
    webhook: str
    host: str
    attempts: int
    reason: str


SESSION_EVENTS: tuple[type[JobEvent], ...] = (
    StepFinished, CheckpointWritten, RunResumed, EvaluationProgress, EvaluationFinished, SamplesWritten, BestStepFound,
    FileExported, ReportWritten, RewardHackingFound, StoppedEarly, JobWarned, RewardLeftOut, RewardUnverified,
    RewardSilent, RewardAnswersAgain, RankingsPending, GroupSkipped, CandidatesNotFinite, PromptsCut, SchedulerChanged,
    MemoryRanOut, GraphsGivenUp, PrecisionChosen, PrecisionKept, PrecisionIsSlow, AcceleratorLost,
)  # fmt: skip
_BY_KIND = {event.kind: event for event in SESSION_EVENTS}


def describe_event(kind: str, data: Mapping[str, Any]) -> tuple[str, EventLevel]:
    """What a session's report says in a sentence, and its level; a kind that is not known is named by itself."""
    event, plain = _BY_KIND.get(kind), _name_kind(kind)
    return format_message(event.message if event else plain, data, plain), event.level if event else "info"


def pending_rankings(kind: str, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an event says of rankings that are pending, by reward; none of them are any more where it is empty, and
    None where it is an event that says nothing of them.
    """
    figures = ("groups", "step_groups", "oldest_s", "per_minute", "expected_s")
    if kind == RankingsPending.kind:
        return {data["reward"]: {name: data.get(name) for name in figures}}
    if kind == StepFinished.kind:
        found = data.get("pending") or {}
        return {name: {each: said.get(each) for each in figures} for name, said in found.items()}
    return None


def format_message(message: str, data: Mapping[str, Any], otherwise: str) -> str:
    """The sentence with its numbers short; `otherwise` where `data` lacks one that it names."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in data.items()}
    shown = {key: "none" if value is None else value for key, value in shown.items()}
    try:
        return message.format_map(shown)
    except (KeyError, ValueError):
        return otherwise


def _name_kind(kind: str) -> str:
    return kind.replace("_", " ").capitalize()
