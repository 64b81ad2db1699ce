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
from dipole_trainer.ranking.weight_changes import WeightChange, read_weight_changes
from dipole_trainer.registry.model_names import NamedModel, checkpoint_name, fine_tuned_name
from dipole_trainer.spec import (
    FeaturesSpec,
    InitialCheckpoint,
    LoraSpec,
    MethodSpec,
    OptimizerSpec,
    RewardSpec,
    read_former_spec,
)

log = structlog.get_logger()
T = TypeVar("T")
Row = TypeVar("Row")
# kinds of events whose data are numbers to plot
METRIC_EVENT_KINDS = frozenset(event.kind for event in SESSION_EVENTS if event.has_figures)


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Paged(ApiModel, Generic[T]):
    """A page of objects, newest first."""

    model_config = ConfigDict(json_schema_extra={"description": "A page of objects, newest first."})

    object: Literal["list"] = Field(default="list", description="What kind of object this is.")
    data: list[T] = Field(description="Objects of this page.")
    has_more: bool = Field(description="Whether there are more objects after this page.")
    first_id: str | None = Field(default=None, description="Id of the first object; null where objects have none.")
    last_id: str | None = Field(
        default=None, description="Id of the last object: send it as `after` for the next page."
    )


class FileObject(ApiModel):
    """An uploaded file. `lines` counts its prompts or pairs, `kind` says which they are."""

    id: str = Field(examples=["file-0b5e7f2c9a4d1e8f63b7c2a5"], description="Id that jobs name the file by.")
    object: Literal["file"] = Field(default="file", description="What kind of object this is.")
    bytes: int = Field(description="Size of the file as it is kept, as JSON lines.")
    created_at: int = Field(description="When the file was uploaded, in Unix seconds.")
    filename: str = Field(examples=["prompts.jsonl"], description="Name that the file was uploaded with.")
    purpose: str = Field(default="fine-tune", description="Purpose that the file was uploaded for.")
    status: Literal["processed"] = Field(
        default="processed", description="Always `processed`: a file is checked while it is taken."
    )
    status_details: None = Field(default=None, description="Always null; OpenAI's clients look for it.")
    expires_at: int | None = Field(default=None, description="When the file goes, if its caller wanted it to.")
    lines: int = Field(description="Number of prompts or pairs in the file.")
    sha256: str = Field(description="SHA-256 of the file as it is kept, in hexadecimal.")
    kind: Literal["prompts", "pairs"] = Field(description="Whether the file holds prompts, or pairs of images.")


class Deleted(ApiModel):
    """What was deleted."""

    id: str = Field(description="Id or name of what was deleted.")
    object: str = Field(description="What kind of object was deleted.")
    deleted: Literal[True] = Field(default=True, description="Always true: what could not be deleted is an error.")


class JobError(ApiModel):
    """Why a job failed, or what a paused job waits for."""

    code: str = Field(description="The reason in a word, for programs.")
    message: str = Field(description="The reason in a sentence, for people.")
    param: str | None = Field(
        default=None, description="The field or the reward that is to blame; null where there is none."
    )


class UnreadableObject(BaseModel):
    """A stored object that this version cannot show: `error` says why, and a job's plain fields are beside it."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Id or name of the stored object.")
    object: str = Field(examples=["fine_tuning.job"], description="What kind of object is stored.")
    error: JobError = Field(description="Why this version cannot show the object.")


class PendingRankingsSummary(ApiModel):
    """Groups that a reward takes its time for (202), as people do, when the job last said so."""

    groups: int = Field(description="Number of groups that are pending there.")
    step_groups: int | None = Field(description="How many of them the next update waits for; null while it does not.")
    oldest_s: float = Field(description="Seconds that the oldest has been pending.")
    per_minute: float | None = Field(description="Rate of the last rankings that came; null before the first.")
    expected_s: float | None = Field(description="Seconds until the next update has its own, by that rate.")


class EvaluationSummary(ApiModel):
    """The evaluation's settings; a count stands for its prompts."""

    every: int = Field(description="Steps between evaluations; 0 is only before and after.")
    images_per_prompt: int = Field(description="Number of images that are drawn for each prompt.")
    seed: int = Field(description="Seed of the noises that every evaluation draws from.")
    best_by: str | None = Field(default=None, description="Score whose best checkpoint is kept.")
    prompt_count: int = Field(description="Number of held-out prompts.")


class FineTuningJob(ApiModel):
    """A job. OpenAI's fields first; `status` may also be `paused`, and `waiting_for` says for what and why."""

    model_config = ConfigDict(extra="allow")  # a new knob of TrainSpec shows up by itself

    id: str = Field(examples=["ftjob-0b5e7f2c9a4d1e8f63b7c2a5"], description="Id of the job.")
    object: Literal["fine_tuning.job"] = Field(default="fine_tuning.job", description="What kind of object this is.")
    created_at: int = Field(description="When the job was created, in Unix seconds.")
    error: JobError | None = Field(description="Why the job failed; null where it did not.")
    fine_tuned_model: str | None = Field(
        description="Name of the model that came of the job; null until it has succeeded."
    )
    finished_at: int | None = Field(description="When the job ended, in Unix seconds; null while it has not.")
    hyperparameters: dict[str, int | float | str] = Field(
        description="OpenAI's three hyperparameters, as this job has them."
    )
    model: str = Field(examples=["tiny-turbo"], description="Model that the job was asked to train.")
    organization_id: str = Field(default="", description="Always empty; OpenAI's clients look for it.")
    result_files: list[str] = Field(default=[], description="Always empty: what a job makes are its artifacts.")
    seed: int = Field(description="Seed that all of the job's noises follow from.")
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"] = Field(
        description="State of the job."
    )
    trained_tokens: None = Field(default=None, description="Always null: images have no tokens.")
    training_file: str = Field(description="Id of the file that the job trains on; empty where there is none.")
    validation_file: str | None = Field(description="Id of the file of held-out prompts; null where none was given.")
    estimated_finish: int | None = Field(
        description="When a running job will end at its present rate, in Unix seconds."
    )
    integrations: list[Any] = Field(default=[], description="Always empty: none are supported.")
    metadata: dict[str, str] | None = Field(description="Notes of the caller's own, as they were given.")
    method: MethodSpec = Field(description="The method, with its settings.")
    # ours
    desired: Literal["run", "pause", "cancel"] = Field(description="What was asked of the job; it follows soon.")
    waiting_for: JobError | None = Field(
        description="What a paused job waits for: an unavailable reward (`param`), or the store of its files."
    )
    pending_rankings: dict[str, PendingRankingsSummary] | None = Field(
        default=None, description="Of a running job: what is pending at rewards that take their time, by their names."
    )
    suffix: str | None = Field(description="Text that the caller wanted in the fine-tuned model's name.")
    started_at: int | None = Field(description="When a worker first took the job, in Unix seconds.")
    step: int = Field(description="Number of updates done.")
    steps: int = Field(description="Number of updates that the job is to do.")
    prompt_count: int = Field(description="Number of prompts that are trained on.")
    rewards: list[RewardSpec] = Field(description="Rewards that rank the candidates, and those that only watch.")
    weight_changes: list[WeightChange] = Field(
        default=[], description="Weights that were changed since the job was created, in the order of the changes."
    )
    features: FeaturesSpec | str = Field(description="The feature space; its name alone in jobs of version 0.1.")
    candidates: int = Field(description="Number of images per prompt and update (K).")
    prompts_per_step: int = Field(description="Number of prompts of one step.")
    max_staleness: int = Field(description="Number of steps that generation may run ahead of updates.")
    lora: LoraSpec = Field(description="Shape of the adapter that is trained.")
    optimizer: OptimizerSpec = Field(description="Settings of the optimizer.")
    evaluation: EvaluationSummary = Field(description="Settings of the evaluation.")
    checkpoint_every: int = Field(description="Steps between checkpoints.")
    keep_checkpoints: int = Field(description="Number of the newest checkpoints that are kept.")
    chunk_size: int = Field(description="Number of samples that are worked on at once.")
    precision: str | None = Field(description="None given: it follows the device, as an event says.")
    initial_checkpoint: InitialCheckpoint | None = Field(
        default=None, description="Checkpoint of an earlier job that this one starts from, where `model` named one."
    )
    warnings: list[str] = Field(default=[], description="What was to be said when the job was created, in sentences.")


class JobEventObject(ApiModel):
    """Something that happened to a job. `kind` says what; `type` is OpenAI's coarse word for it."""

    id: str = Field(examples=["ftevent-42"], description="Id of the event; its number grows with time.")
    object: Literal["fine_tuning.job.event"] = Field(
        default="fine_tuning.job.event", description="What kind of object this is."
    )
    created_at: int = Field(description="When it happened, in Unix seconds.")
    level: str = Field(description="How grave it is: `info`, `warn` or `error`.")
    message: str = Field(description="What happened, in a sentence.")
    type: Literal["message", "metrics"] = Field(
        description="`metrics` where `data` holds figures to plot, else `message`."
    )
    data: dict[str, Any] = Field(description="Figures and names that belong to the event's kind.")
    kind: str = Field(examples=["step"], description="What happened, as a word for programs.")
    job_id: str = Field(description="Id of the job.")


class JobCheckpoint(ApiModel):
    """A saved state of a job; `download` is the path of its LoRA."""

    id: str = Field(examples=["ftckpt-0b5e7f2c9a4d1e8f63b7c2a5"], description="Id of the checkpoint.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(
        default="fine_tuning.job.checkpoint", description="What kind of object this is."
    )
    created_at: int = Field(description="When it was written, in Unix seconds.")
    fine_tuned_model_checkpoint: str = Field(description="Name that image requests and later jobs give as `model`.")
    fine_tuning_job_id: str = Field(description="Id of the job that wrote it.")
    metrics: dict[str, Any] = Field(description="Figures of the last step before it, by name.")
    step_number: int = Field(description="Number of updates that had been done.")
    download: str = Field(description="Where its weights are, relative to the API's base URL.")


class ArtifactObject(ApiModel):
    """A file that a job made."""

    object: Literal["fine_tuning.job.artifact"] = Field(
        default="fine_tuning.job.artifact", description="What kind of object this is."
    )
    path: str = Field(examples=["samples/step-100.png"], description="Path of the file in the job's folder.")
    bytes: int = Field(description="Size of the file.")
    url: str = Field(description="Where it is, relative to the API's base URL.")


class RewardObject(ApiModel):
    """A registered endpoint; its key is never shown."""

    object: Literal["reward"] = Field(default="reward", description="What kind of object this is.")
    name: str = Field(examples=["shapes"], description="Name that jobs give.")
    url: str = Field(examples=["http://127.0.0.1:8401"], description="Base URL of the endpoint.")
    kind: str = Field(examples=["dipole"], description="Which protocol the endpoint speaks.")
    options: dict[str, Any] = Field(description="Options of the kind, as they were registered.")
    has_key: bool = Field(description="Whether a bearer key is sent to the endpoint.")
    tls: str | None = Field(description="Name of the folder with its certificates.")
    description: str = Field(description="What the reward looks for, in its operator's words.")
    created_at: int = Field(description="When it was first registered, in Unix seconds.")


class RegisteredReward(RewardObject):
    """An endpoint as it is registered now, and what became of it."""

    change: Literal["registered", "changed", "unchanged"] = Field(description="What the registration did.")
    changed: list[str] = Field(description="Names of the fields that have changed.", examples=[["url", "key"]])


class KeyObject(ApiModel):
    """A caller's key; `key` is its text, shown once, when it is made."""

    object: Literal["api_key"] = Field(default="api_key", description="What kind of object this is.")
    id: str = Field(description="Id that the key is revoked by.")
    name: str = Field(description="Name of whoever holds the key.")
    scopes: list[str] = Field(description="What the key may do.")
    created_at: int = Field(description="When it was made, in Unix seconds.")
    key: str | None = Field(default=None, description="Text of the key: in the answer that makes it, and never again.")


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
    said = read_former_spec(row.summary)
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
        weight_changes=read_weight_changes(row.weight_changes),
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

    id: str = Field(examples=["tiny-turbo"], description="Name that jobs and image requests give as `model`.")
    object: Literal["model"] = Field(default="model", description="What kind of object this is.")
    created: int = Field(description="When it was made, in Unix seconds; 0 for a base model.")
    owned_by: str = Field(examples=["system"], description="`system` for a base, `dipole` for what was made of one.")


def to_model_object(model: NamedModel) -> ModelObject:
    owner = "system" if model.is_base else "dipole"
    return ModelObject(id=model.name, created=int(model.created_at), owned_by=owner)


class WorkerDevice(ApiModel):
    """What a worker computes on."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(examples=["cuda"], description="Kind of the device, as torch calls it.")
    name: str = Field(examples=["NVIDIA GeForce RTX 4090"], description="Name of the device.")
    memory_bytes: int = Field(description="Memory of the device, in bytes.")


class WorkerObject(ApiModel):
    """A worker that lives, and what of the weights that jobs may name lies on its machine."""

    id: str = Field(description="Name of the worker.")
    object: Literal["worker"] = Field(default="worker", description="What kind of object this is.")
    models: dict[str, str] = Field(
        description="Names of whole pipelines, with their kind: folders, hub ids of its cache, `org/name@revision`.",
        examples=[{"tiny-turbo": "tiny", "sd-turbo": "sd"}],
    )
    features: dict[str, list[str]] = Field(description="By feature space, the names of weights that it could load.")
    decoders: list[str] = Field(
        description="Kinds of models whose tiny decoder it has, for `reward_decoder`.", examples=[["tiny", "sd"]]
    )
    devices: list[WorkerDevice] = Field(description="Devices that the worker computes on.")
    trackers: list[str] = Field(description="Trackers that jobs may report to there.", examples=[["tensorboard"]])
    version: str | None = Field(
        description="Dipole's version there; null of one that does not say.", examples=["0.1.0"]
    )
    started_at: int = Field(description="When the worker started, in Unix seconds.")
    seen_at: int = Field(description="When the worker last gave a sign of life, in Unix seconds.")


def to_worker_object(row: WorkerRow) -> WorkerObject:
    return WorkerObject(
        id=row.name,
        models=row.models,
        features=row.features,
        decoders=row.decoders or [],
        devices=[WorkerDevice(**each) for each in row.devices],
        trackers=row.trackers or [],
        version=row.version,
        started_at=int(row.started_at),
        seen_at=int(row.seen_at),
    )


class ImageObject(ApiModel):
    """An image as a base64 PNG; the same `seed` gives it again."""

    b64_json: str = Field(description="The image as PNG, in base64.")
    seed: int = Field(description="Seed that draws this image again.")


class ImagesResponse(ApiModel):
    """Drawn images. `checkpoint` is the id of the one that drew them; none: the base did."""

    created: int = Field(description="When the images were drawn, in Unix seconds.")
    data: list[ImageObject] = Field(description="The images, in the order of their seeds.")
    output_format: Literal["png"] = Field(default="png", description="Format of the images.")
    size: str = Field(examples=["512x512"], description="Size of the images, as width x height in pixels.")
    # ours
    model: str = Field(examples=["tiny-turbo"], description="The model as it was asked for.")
    checkpoint: str | None = Field(description="Id of the checkpoint that drew the images; null for a base model.")
    warning: str | None = Field(
        default=None, description="What of the prompt the model's text encoder did not read: it is too long for it."
    )
