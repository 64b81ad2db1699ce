"""What a caller sends to create a job, and the TrainSpec it means.

JobRequest is TrainSpec (one declaration of every knob) with OpenAI's own fields beside it. What it trains on comes
inline, from a file of prompts or of pairs, or from another job; models, rewards and hosts are checked here, live
workers and rewards are asked (admission.py), so that a job which cannot work is refused and not failed later.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from starlette.concurrency import run_in_threadpool

from dipole.client.endpoint import Endpoint, check_allowed_url, check_reward_url
from dipole.errors import Conflict, InvalidInput, NotFound
from dipole.protocol.validation import check_storable
from dipole_trainer.api import admission, files
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.api.initial_weights import InitialWeights, find_initial_weights, initial_of_job
from dipole_trainer.database.tables import TERMINAL_STATES, JobRow, RewardRow
from dipole_trainer.datasets import prompts, recordings
from dipole_trainer.datasets.recordings import RecordedJob
from dipole_trainer.jobs.store import new_job_id
from dipole_trainer.spec import MAX_COUNT, Count, Many, PromptSpec, RewardSpec, SpecModel, TrainSpec, asks_rewards
from dipole_trainer.storage import job_layout
from dipole_trainer.weights import base_models

JOB_EXAMPLE: dict[str, Any] = {
    "model": "tiny-turbo",
    "training_file": "file-0b5e7f2c9a4d1e8f63b7c2a5",
    "rewards": [{"name": "shapes"}, {"name": "colourfulness", "weight": 0}],
    "method": {"type": "drpo", "drpo": {"positives": 4, "negatives": 4}},
    "steps": 100,
    "candidates": 12,
}
MAX_NOTES = 16


class Hyperparameters(SpecModel):
    """OpenAI's; `auto` keeps our default. `n_epochs` gives `steps`, `batch_size` is `prompts_per_step`."""

    n_epochs: Count | Literal["auto"] = Field(
        default="auto", description="Number of times that each prompt is drawn, instead of `steps`."
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto", description="Number of prompts of one step, instead of `prompts_per_step`."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto", description="Factor on the default learning rate."
    )


class JobRequest(TrainSpec):
    """A job to create. It trains on `prompts`, on a file of prompts or of pairs (`training_file`), or replays a job."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB_EXAMPLE]})

    prompts: Many[PromptSpec] = Field(
        default=(), max_length=1_000_000, description="Prompts to train on, instead of a file of them."
    )
    training_file: str | None = Field(
        default=None, max_length=64, description="Id of an uploaded file of prompts, or of pairs."
    )
    validation_file: str | None = Field(default=None, max_length=64, description="Id of a file of held-out prompts.")
    hyperparameters: Hyperparameters | None = Field(
        default=None, description="OpenAI's names for three of the settings."
    )
    suffix: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Text that stands in the fine-tuned model's name.",
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=MAX_NOTES, description="Up to 16 notes of the caller's own."
    )
    allow_unready: bool = Field(
        default=False,
        description="Create the job although rewards do not say that they are ready; it is a warning then.",
    )
    initial_checkpoint: None = Field(
        default=None, description="In answers the checkpoint that a job starts from; here `model` names it."
    )
    integrations: list[JsonValue] | None = Field(
        default=None, max_length=0, description="Integrations; none are supported, so this must be empty."
    )

    @field_validator("metadata", mode="before")
    @classmethod
    def _count_notes(cls, notes: Any) -> Any:
        # before each of a million is found to be too long
        if isinstance(notes, dict) and len(notes) > MAX_NOTES:
            raise ValueError(f"{len(notes)} notes are given; at most {MAX_NOTES} are kept")
        return notes

    @model_validator(mode="after")
    def _check_consistency(self) -> JobRequest:
        # what the files hold decides too: queue_job checks the TrainSpec that comes of it
        return self


@dataclass(frozen=True)
class _TrainingData:
    """What a job trains on: its prompts, the file that shows them, and fields of the spec that follow from it."""

    prompts: tuple[PromptSpec, ...]
    file: str | None = None  # None: of inline prompts it is yet to be written
    values: dict[str, Any] = field(default_factory=dict)
    replayed: RecordedJob | None = None
    initial: InitialWeights | None = None  # of a replay, which starts from where the job did


@dataclass(frozen=True)
class CheckedJob:
    """A request whose job may be queued, once its rewards have been asked."""

    body: JobRequest
    digest: str
    spec: TrainSpec
    source: _TrainingData
    initial: InitialWeights | None
    endpoints: list[tuple[str, RewardSpec, Endpoint | str]]
    warnings: list[str]


async def queue_job(state: ApiState, body: JobRequest, idempotency_key: str | None) -> JobRow:
    """Check a request and queue its job; a repeat with the same key returns the first job."""
    checked = await run_in_threadpool(_check_request, state, body, idempotency_key)
    if isinstance(checked, JobRow):
        return checked
    unready = await state.readiness.find_unready(checked.endpoints)
    if not body.allow_unready:
        admission.refuse_unready(unready)
    checked.warnings.extend(each.sentence for each in unready)
    return await run_in_threadpool(_store_job, state, checked, idempotency_key)


def _check_request(state: ApiState, body: JobRequest, idempotency_key: str | None) -> JobRow | CheckedJob:
    """All that is known without asking anybody else. The first job, of a repeat."""
    check_storable(body.model_dump())
    text = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if idempotency_key is not None:
        try:
            return state.jobs.job_of_key(idempotency_key, digest)
        except NotFound:
            pass
    source = _resolve_training_data(state, body)
    initial = source.initial or find_initial_weights(state, body.model)
    spec = _build_spec(state, body, source, initial)
    workers = state.workers.list_live()
    warnings = admission.check_loadable(spec, workers, state.settings.models_dir)
    warnings += admission.find_missing_trackers(spec, workers)
    spec = _resolve_rewards(state, spec)
    _check_notify(state, spec)
    # where the model's own side is not known here, the session asks
    side = spec.resolution or base_models.image_side(spec.model, state.settings.models_dir)
    if side is not None:
        spec.check_side(side)
        spec.check_window(side, state.settings.candidates_max_gib)
    if source.replayed is not None:
        recordings.check_replay_fits(spec, source.replayed)
        recordings.rewards_of_replay(spec, source.replayed)
    endpoints = admission.resolve_endpoints(spec, state.rewards, state.settings.reward_hosts)
    return CheckedJob(body, digest, spec, source, initial, endpoints, warnings)


def _store_job(state: ApiState, checked: CheckedJob, idempotency_key: str | None) -> JobRow:
    body, training_file = checked.body, checked.source.file
    # inline prompts become a file, so that every job has one
    if training_file is None:
        lines = io.BytesIO(prompts.dump_prompts(checked.source.prompts))
        training_file = files.store_file(state, lines, "inline-prompts.jsonl", field="prompts").id
    job_id = new_job_id()
    if checked.initial is not None:
        checked.initial.copy_to(state.artifacts, job_id)
    try:
        job = state.jobs.create_job(
            checked.spec,
            job_id=job_id,
            training_file=training_file,
            validation_file=body.validation_file,
            extra={"metadata": body.metadata, "suffix": body.suffix, "warnings": checked.warnings},
            warnings=checked.warnings,
            idempotency_key=idempotency_key,
            digest=checked.digest,
        )
    except Conflict:
        # another request with the same key was first
        if checked.initial is not None:
            state.artifacts.delete_folder(job_layout.job_path(job_id))
        raise
    if job.id != job_id and checked.initial is not None:
        state.artifacts.delete_folder(job_layout.job_path(job_id))  # another request with the same key was first
    return job


# ---- what it trains on ----------------------------------------------------------------------------------------------


def _resolve_training_data(state: ApiState, body: JobRequest) -> _TrainingData:
    ways = ("prompts", "replay_job", "pairs_file", "training_file")
    given = [way for way in ways if getattr(body, way)]
    if len(given) > 1:
        raise InvalidInput(f"give {given[0]} or {given[1]}, not both", field=given[0])
    if not given:
        raise InvalidInput(
            "a job needs training_file (an uploaded file's id), prompts or replay_job", field="training_file"
        )
    if body.replay_job:
        return resolve_replay(state, body, body.replay_job)
    if body.prompts:
        return _TrainingData(body.prompts)
    (way,) = given
    row = files.find_file(state, getattr(body, way), field=way, kind="pairs" if way == "pairs_file" else None)
    found = tuple(files.read_file_prompts(state, row, field=way))
    return _TrainingData(found, row.id, {"pairs_file": row.id} if row.kind == "pairs" else {})


def resolve_replay(state: ApiState, body: JobRequest, job_id: str) -> _TrainingData:
    """Another job's recorded rankings. What the caller leaves out is as it was there."""
    try:
        job = state.jobs.get_job(job_id)
    except NotFound as error:
        raise InvalidInput(f"replay_job: {error}", field="replay_job") from error
    if job.state not in TERMINAL_STATES:
        raise InvalidInput(
            f"replay_job: {job_id} is {job.state}: it can be replayed when it has ended", field="replay_job"
        )
    folder = job_layout.job_path(job_id, job_layout.CANDIDATES_FOLDER)
    steps = job_layout.sort_candidate_files(each.path for each in state.artifacts.list_files(folder))
    if not steps:
        raise InvalidInput(
            f"replay_job: {job_id} has recorded nothing: {recordings.NEEDS_RECORDING}", field="replay_job"
        )
    with state.artifacts.open_file(f"{folder}/{steps[0]}") as file:
        replayed = recordings.read_recorded_step(file).job
    same = {"steps": len(steps), **{name: getattr(replayed, name) for name in recordings.MATCHED_FIELDS}}
    values = {name: value for name, value in same.items() if name not in body.model_fields_set}
    spec = state.jobs.load_spec(job_id)
    initial = initial_of_job(state, spec, job_id) if "model" in values else None
    return _TrainingData(spec.prompts, job.training_file, values, replayed, initial)


# ---- the spec -------------------------------------------------------------------------------------------------------


def _build_spec(state: ApiState, body: JobRequest, source: _TrainingData, initial: InitialWeights | None) -> TrainSpec:
    values = {name: getattr(body, name) for name in TrainSpec.model_fields if name in body.model_fields_set}
    values |= {"prompts": source.prompts, **source.values}
    if initial is not None:
        values |= initial.spec_values(values)
    if body.validation_file:
        if body.evaluation.prompts:
            raise InvalidInput("give evaluation.prompts or validation_file, not both", field="validation_file")
        row = files.find_file(state, body.validation_file, field="validation_file", kind="prompts")
        held_out = files.read_file_prompts(state, row, field="validation_file")
        if len(held_out) > 2000:
            raise InvalidInput(f"evaluation takes 2000 prompts at most, not {len(held_out)}", field="validation_file")
        values["evaluation"] = body.evaluation.model_copy(update={"prompts": tuple(held_out)})
    values |= fields_of_hyperparameters(
        body, len(source.prompts), values.get("prompts_per_step", body.prompts_per_step)
    )
    try:
        return TrainSpec(**values).with_explicit_sides()
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _resolve_rewards(state: ApiState, spec: TrainSpec) -> TrainSpec:
    """The spec with the deadline that each endpoint's options give where the job says none."""
    rows = state.rewards.list_rewards()
    _check_rewards(state, spec, rows)
    options = {row.name: row.options for row in rows}
    rewards = []
    for reward in spec.rewards:
        own = (reward.options if reward.url is not None else options.get(reward.name, {})).get("timeout_s")
        is_said = own is None or "timeout_s" in reward.model_fields_set
        rewards.append(reward if is_said else reward.model_copy(update={"timeout_s": own}))
    return spec.model_copy(update={"rewards": tuple(rewards)})


def _check_rewards(state: ApiState, spec: TrainSpec, rows: Sequence[RewardRow]) -> None:
    """Each must be one that can be asked, unless no one will ask it."""
    asked = asks_rewards(spec)
    if spec.rewards and spec.pairs_file is not None and not asked:
        raise InvalidInput(
            "pairs are trained on without rewards, which evaluations alone ask: give evaluation.prompts or no rewards",
            field="rewards",
        )
    if spec.pairs_file is not None and spec.record_candidates:
        raise InvalidInput(
            "record_candidates keeps what rewards said, and pairs ask none: leave it out", field="record_candidates"
        )
    registered = {row.name for row in rows}
    for index, reward in enumerate(spec.rewards):
        if reward.url is not None:
            check_reward_url(reward.url, state.settings.reward_hosts, field=f"rewards[{index}].url")
        elif asked and reward.name not in registered:
            known = f"registered are {', '.join(sorted(registered))}" if registered else "none is registered"
            raise InvalidInput(
                f"unknown reward {reward.name!r}: {known}; register it at /v1/rewards or give its url",
                field=f"rewards[{index}].name",
            )


def _check_notify(state: ApiState, spec: TrainSpec) -> None:
    """Nothing is sent to a host that whoever runs this did not allow."""
    hosts = state.settings.webhook_hosts
    if spec.notify and not hosts:
        raise InvalidInput(
            "notify: no webhook is sent from here: leave it out, or have DIPOLE_WEBHOOK_HOSTS name hosts",
            field="notify",
        )
    for index, url in enumerate(spec.notify):
        check_allowed_url(url, hosts, field=f"notify[{index}]", setting="DIPOLE_WEBHOOK_HOSTS")


def fields_of_hyperparameters(body: JobRequest, prompt_count: int, per_step: int) -> dict[str, Any]:
    given = body.hyperparameters
    if given is None:
        return {}
    values: dict[str, Any] = {}
    if given.batch_size != "auto":
        values["prompts_per_step"] = per_step = given.batch_size
    if given.n_epochs != "auto":
        if "steps" in body.model_fields_set:
            raise InvalidInput("give steps or hyperparameters.n_epochs, not both", field="hyperparameters.n_epochs")
        values["steps"] = steps = -(-given.n_epochs * prompt_count // per_step)  # rounded up
        if steps > MAX_COUNT:
            raise InvalidInput(
                f"hyperparameters.n_epochs = {given.n_epochs} makes {steps} steps of {prompt_count} prompts: "
                f"{MAX_COUNT} at most are possible, so give fewer",
                field="hyperparameters.n_epochs",
            )
    if given.learning_rate_multiplier != "auto":
        rate = body.optimizer.lr * given.learning_rate_multiplier
        if not 0 < rate < math.inf:
            raise InvalidInput(
                f"hyperparameters.learning_rate_multiplier = {given.learning_rate_multiplier:g} makes a learning rate "
                f"of {rate:g} of optimizer.lr = {body.optimizer.lr:g}: give one nearer to 1",
                field="hyperparameters.learning_rate_multiplier",
            )
        values["optimizer"] = body.optimizer.model_copy(update={"lr": rate})
    return values
