"""Response models of the REST API, and how rows become them: OpenAI's fine-tuning objects with our fields beside
theirs, made from rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dipole.protocol.job_events import SESSION_EVENTS
from dipole.protocol.validation import first_error
from dipole_trainer.database.tables import ApiKeyRow, CheckpointRow, EventRow, FileRow, JobRow, RewardRow, WorkerRow
from dipole_trainer.registry.model_names import NamedModel, checkpoint_name, fine_tuned_name
from dipole_trainer.spec import FeaturesSpec, InitialCheckpoint, LoraSpec, MethodSpec, OptimizerSpec, RewardSpec

log = structlog.get_logger()
T = TypeVar("T")
Row = TypeVar("Row")
# kinds of events whose data are numbers to plot
METRIC_EVENT_KINDS = frozenset(event.kind for event in SESSION_EVENTS if event.has_figures)


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Paged(ApiModel, Generic[T]):
    """A page of objects, newest first."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class FileObject(ApiModel):
    """An uploaded file. `lines` counts its prompts or pairs, `kind` says which they are."""

    id: str = Field(examples=["file-0b5e7f2c9a4d1e8f63b7c2a5"])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str = Field(examples=["prompts.jsonl"])
    purpose: str = "fine-tune"
    status: Literal["processed"] = "processed"
    status_details: None = None
    expires_at: int | None = Field(default=None, description="When the file goes, if its caller wanted it to.")
    lines: int
    sha256: str
    kind: Literal["prompts", "pairs"]


class Deleted(ApiModel):
    id: str
    object: str
    deleted: Literal[True] = True


class JobError(ApiModel):
    """Why a job failed, or what a paused job waits for."""

    code: str
    message: str
    param: str | None = None


class UnreadableObject(BaseModel):
    """A stored object that this version cannot show: `error` says why, and a job's plain fields are beside it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str = Field(examples=["fine_tuning.job"])
    error: JobError


class PendingRankingsSummary(ApiModel):
    """Groups that a reward takes its time for (202), as people do, when the job last said so."""

    groups: int = Field(description="Number of groups that are pending there.")
    step_groups: int | None = Field(description="How many of them the next update waits for; null while it does not.")
    oldest_s: float = Field(description="Seconds that the oldest has been pending.")
    per_minute: float | None = Field(description="Rate of the last rankings that came; null before the first.")
    expected_s: float | None = Field(description="Seconds until the next update has its own, by that rate.")


class EvaluationSummary(ApiModel):
    """The evaluation's settings; a count stands for its prompts."""

    every: int
    images_per_prompt: int
    seed: int
    best_by: str | None = None
    prompt_count: int


class FineTuningJob(ApiModel):
    """A job. OpenAI's fields first; `status` may also be `paused`, and `waiting_for` says for what and why."""

    model_config = ConfigDict(extra="allow")  # a new knob of TrainSpec shows up by itself

    id: str = Field(examples=["ftjob-0b5e7f2c9a4d1e8f63b7c2a5"])
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, int | float | str]
    model: str = Field(examples=["tiny-turbo"])
    organization_id: str = ""
    result_files: list[str] = []
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: None = None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any] = []
    metadata: dict[str, str] | None
    method: MethodSpec
    # ours
    desired: Literal["run", "pause", "cancel"] = Field(description="What was asked of the job; it follows soon.")
    waiting_for: JobError | None = Field(
        description="What a paused job waits for: an unavailable reward (`param`), or room for its files."
    )
    pending_rankings: dict[str, PendingRankingsSummary] | None = Field(
        default=None, description="Of a running job: what is pending at rewards that take their time, by their names."
    )
    suffix: str | None
    started_at: int | None
    step: int = Field(description="Number of updates done.")
    steps: int
    prompt_count: int
    rewards: list[RewardSpec]
    features: FeaturesSpec | str = Field(description="The feature space; its name alone in jobs of version 0.1.")
    candidates: int
    prompts_per_step: int
    max_staleness: int
    lora: LoraSpec
    optimizer: OptimizerSpec
    evaluation: EvaluationSummary
    checkpoint_every: int
    keep_checkpoints: int
    chunk_size: int
    precision: str | None = Field(description="None given: it follows the device, as an event says.")
    initial_checkpoint: InitialCheckpoint | None = Field(
        default=None, description="Checkpoint of an earlier job that this one starts from, where `model` named one."
    )
    warnings: list[str] = Field(default=[], description="What was to be said when the job was created, in sentences.")


class JobEventObject(ApiModel):
    """Something that happened to a job. `kind` says what; `type` is OpenAI's coarse word for it."""

    id: str = Field(examples=["ftevent-42"])
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]
    kind: str = Field(examples=["step"])
    job_id: str


class JobCheckpoint(ApiModel):
    """A saved state of a job; `download` is the path of its LoRA."""

    id: str = Field(examples=["ftckpt-0b5e7f2c9a4d1e8f63b7c2a5"])
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int
    download: str = Field(description="Where its weights are, relative to the API's base URL.")


class ArtifactObject(ApiModel):
    object: Literal["fine_tuning.job.artifact"] = "fine_tuning.job.artifact"
    path: str = Field(examples=["samples/step-100.png"])
    bytes: int
    url: str = Field(description="Where it is, relative to the API's base URL.")


class RewardObject(ApiModel):
    """A registered endpoint; its key is never shown."""

    object: Literal["reward"] = "reward"
    name: str = Field(examples=["shapes"])
    url: str = Field(examples=["http://127.0.0.1:8401"])
    kind: str = Field(examples=["dipole"])
    options: dict[str, Any]
    has_key: bool
    tls: str | None = Field(description="Name of the folder with its certificates.")
    description: str
    created_at: int


class RegisteredReward(RewardObject):
    """An endpoint as it is registered now, and what became of it."""

    change: Literal["registered", "changed", "unchanged"]
    changed: list[str] = Field(description="Names of the fields that have changed.", examples=[["url", "key"]])


class KeyObject(ApiModel):
    """A caller's key; `key` is its text, shown once, when it is made."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: list[str]
    created_at: int
    key: str | None = None


def page_of(objects: list[T], has_more: bool) -> Paged[T]:
    ids = [getattr(each, "id", None) for each in objects]
    return Paged(data=objects, has_more=has_more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


def show_rows(rows: Iterable[Row], to_object: Callable[[Row], T]) -> list[T | UnreadableObject]:
    """Each row as its object; one that cannot be shown shows that, and hides no other."""
    return [show_row(row, to_object) for row in rows]


def show_row(row: Row, to_object: Callable[[Row], T]) -> T | UnreadableObject:
    try:
        return to_object(row)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        why = first_error(error).sentence if isinstance(error, ValidationError) else repr(error)
    name = str(getattr(row, "id", None) or getattr(row, "name", ""))
    table = str(getattr(row, "__tablename__", ""))
    log.warning("unreadable_row", table=table, row=name, error=why)
    fault = JobError(code="unreadable", message=f"this version cannot show what is stored: {why}")
    if not isinstance(row, JobRow):
        return UnreadableObject(id=name, object=table.removesuffix("s"), error=fault)
    plain = {field: getattr(row, field) for field in ("model", "step", "steps", "desired", "training_file")}
    times = {field: _whole_seconds(getattr(row, field)) for field in ("created_at", "started_at", "finished_at")}
    return UnreadableObject(id=name, object="fine_tuning.job", error=fault, status=row.state, **plain, **times)


def show_job(row: JobRow) -> FineTuningJob | UnreadableObject:
    return show_row(row, to_job_object)


def to_file_object(row: FileRow) -> FileObject:
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at),
        filename=row.filename,
        lines=row.lines,
        sha256=row.sha256,
        kind=row.kind,
        expires_at=_whole_seconds(row.expires_at),
    )


def to_job_object(row: JobRow) -> FineTuningJob:
    said = dict(row.summary)
    pending = said.pop("pending_rankings", None)
    waiting = None
    if row.waiting_reward is not None or row.waiting_reason is not None:
        code = "reward_unavailable" if row.waiting_reward else "storage_unavailable"
        waiting = JobError(code=code, message=row.waiting_reason or "", param=row.waiting_reward)
    return FineTuningJob(
        **said,
        id=row.id,
        created_at=int(row.created_at),
        error=JobError(**row.error) if row.error else None,
        fine_tuned_model=fine_tuned_name(row) if row.state == "succeeded" else None,
        finished_at=_whole_seconds(row.finished_at),
        started_at=_whole_seconds(row.started_at),
        hyperparameters={
            "batch_size": said["prompts_per_step"],
            "n_epochs": "auto",
            "learning_rate_multiplier": "auto",
        },
        status=row.state,
        desired=row.desired,
        training_file=row.training_file or "",
        validation_file=row.validation_file,
        estimated_finish=int(time.time() + row.eta_s) if row.eta_s is not None and row.state == "running" else None,
        waiting_for=waiting,
        pending_rankings=(pending or None) if row.state == "running" else None,
        step=row.step,
    )


def to_event_object(row: EventRow) -> JobEventObject:
    return JobEventObject(
        id=f"ftevent-{row.id}",
        created_at=int(row.created_at),
        level=row.level,
        message=row.message,
        type="metrics" if row.kind in METRIC_EVENT_KINDS else "message",
        data=row.data,
        kind=row.kind,
        job_id=row.job_id,
    )


def to_checkpoint_object(row: CheckpointRow, job: JobRow) -> JobCheckpoint:
    return JobCheckpoint(
        id=row.id,
        created_at=int(row.created_at),
        fine_tuned_model_checkpoint=checkpoint_name(job, row.step),
        fine_tuning_job_id=row.job_id,
        metrics={**row.metrics, "step": row.step},
        step_number=row.step,
        download=f"v1/fine_tuning/jobs/{row.job_id}/checkpoints/{row.id}/download",
    )


def to_reward_object(row: RewardRow) -> RewardObject:
    return RewardObject(
        name=row.name,
        url=row.url,
        kind=row.kind,
        options=row.options,
        has_key=row.key is not None,
        tls=row.tls,
        description=row.description,
        created_at=int(row.created_at),
    )


def to_registered_reward(row: RewardRow, changed: list[str] | None) -> RegisteredReward:
    change: Literal["registered", "changed", "unchanged"] = "changed" if changed else "unchanged"
    return RegisteredReward(
        **to_reward_object(row).model_dump(),
        change="registered" if changed is None else change,
        changed=changed or [],
    )


def to_key_object(row: ApiKeyRow, text: str | None = None) -> KeyObject:
    return KeyObject(id=row.id, name=row.name, scopes=row.scopes, created_at=int(row.created_at), key=text)


def _whole_seconds(time_: float | None) -> int | None:
    return None if time_ is None else int(time_)


class ModelObject(ApiModel):
    """A name that jobs and image requests may give as `model`. `created` is 0 for a base."""

    id: str = Field(examples=["tiny-turbo"])
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(examples=["system"], description="`system` for a base, `dipole` for what was made of one.")


def to_model_object(model: NamedModel) -> ModelObject:
    owner = "system" if model.is_base else "dipole"
    return ModelObject(id=model.name, created=int(model.created_at), owned_by=owner)


class WorkerDevice(ApiModel):
    """What a worker computes on."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(examples=["cuda"])
    name: str = Field(examples=["NVIDIA GeForce RTX 4090"])
    memory_bytes: int


class WorkerObject(ApiModel):
    """A worker that lives, and what of the weights that jobs may name lies on its machine."""

    id: str
    object: Literal["worker"] = "worker"
    models: dict[str, str] = Field(
        description="Names of whole pipelines, with their kind: folders, hub ids of its cache, `org/name@revision`.",
        examples=[{"tiny-turbo": "tiny", "sd-turbo": "sd"}],
    )
    features: dict[str, list[str]] = Field(description="By feature space, the names of weights that it could load.")
    devices: list[WorkerDevice]
    trackers: list[str] = Field(description="Trackers that jobs may report to there.", examples=[["tensorboard"]])
    started_at: int
    seen_at: int


def to_worker_object(row: WorkerRow) -> WorkerObject:
    return WorkerObject(
        id=row.name,
        models=row.models,
        features=row.features,
        devices=[WorkerDevice(**each) for each in row.devices],
        trackers=row.trackers or [],
        started_at=int(row.started_at),
        seen_at=int(row.seen_at),
    )


class ImageObject(ApiModel):
    """An image as a base64 PNG; the same `seed` gives it again."""

    b64_json: str
    seed: int


class ImagesResponse(ApiModel):
    """Drawn images. `checkpoint` is the id of the one that drew them; none: the base did."""

    created: int
    data: list[ImageObject]
    output_format: Literal["png"] = "png"
    size: str = Field(examples=["512x512"])
    # ours
    model: str = Field(examples=["tiny-turbo"], description="The model as it was asked for.")
    checkpoint: str | None
    warning: str | None = Field(
        default=None, description="What of the prompt the model's text encoder did not read: it is too long for it."
    )
