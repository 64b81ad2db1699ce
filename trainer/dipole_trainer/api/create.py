"""What a caller sends to create a job, and the TrainSpec it means.

JobCreate is TrainSpec (one declaration of every knob) with OpenAI's own fields beside it. Prompts come inline or from
files; models, rewards and hosts are checked here, so that a job which cannot work is refused and not failed later.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from dipole.errors import InvalidInput, NotFound
from dipole_trainer import base_models, prompts
from dipole_trainer.api import files
from dipole_trainer.api.parts import Parts
from dipole_trainer.catalogue import check_reward_url
from dipole_trainer.models import Job
from dipole_trainer.spec import Many, PromptSpec, Spec, TrainSpec

EXAMPLE: dict[str, Any] = {
    "model": "tiny-turbo",
    "training_file": "file-0b5e7f2c9a4d1e8f63b7c2a5",
    "rewards": [{"name": "shapes"}, {"name": "colourfulness", "weight": 0}],
    "method": {"type": "drpo", "drpo": {"positives": 4, "negatives": 4}},
    "steps": 100,
    "candidates": 12,
}


class Hyperparameters(Spec):
    """OpenAI's; `auto` keeps our default. `n_epochs` gives `steps`, `batch_size` is `prompts_per_step`."""

    n_epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"


class JobCreate(TrainSpec):
    """A job to create. Prompts are inline (`prompts`) or in an uploaded file (`training_file`)."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    prompts: Many[PromptSpec] = Field(default=(), max_length=1_000_000, description="Prompts, without a file.")
    training_file: str | None = Field(default=None, max_length=64, description="Id of an uploaded prompts file.")
    validation_file: str | None = Field(default=None, max_length=64, description="Id of a file of held-out prompts.")
    hyperparameters: Hyperparameters | None = None
    suffix: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16, description="Up to 16 notes of the caller's own."
    )
    integrations: list[JsonValue] | None = Field(default=None, max_length=0, description="None are supported.")


def create_job(parts: Parts, body: JobCreate, idempotency_key: str | None) -> Job:
    """Check a request and queue its job; a repeat with the same key returns the first job."""
    if not prompts.storable(body.model_dump()):
        raise InvalidInput(prompts.UNSTORABLE, field="body")
    text = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if idempotency_key is not None:
        try:
            return parts.jobs.repeated(idempotency_key, digest)
        except NotFound:
            pass
    base_models.locate(body.model, parts.settings.models_dir)
    _check_rewards(parts, body)
    training, training_file = _training_prompts(parts, body)
    spec = _spec(parts, body, training)
    return parts.jobs.create(
        spec,
        training_file=training_file,
        validation_file=body.validation_file,
        extra={"metadata": body.metadata, "suffix": body.suffix},
        idempotency_key=idempotency_key,
        digest=digest,
    )


def _check_rewards(parts: Parts, body: JobCreate) -> None:
    registered = {row.name for row in parts.catalogue.rewards()}
    for index, reward in enumerate(body.rewards):
        if reward.url is not None:
            check_reward_url(reward.url, parts.settings.reward_hosts, field=f"rewards[{index}].url")
        elif reward.name not in registered:
            known = f"registered are {', '.join(sorted(registered))}" if registered else "none is registered"
            raise InvalidInput(
                f"unknown reward {reward.name!r}: {known}; register it at /v1/rewards or give its url",
                field=f"rewards[{index}].name",
            )


def _training_prompts(parts: Parts, body: JobCreate) -> tuple[tuple[PromptSpec, ...], str]:
    """The prompts and the id of their file; inline ones become a file, so that every job has one."""
    if body.prompts and body.training_file:
        raise InvalidInput("give prompts or training_file, not both", field="prompts")
    if body.training_file:
        return tuple(files.load(parts, body.training_file, field="training_file")), body.training_file
    if not body.prompts:
        raise InvalidInput("a job needs training_file (an uploaded file's id) or prompts", field="training_file")
    source = io.BytesIO(prompts.dump(body.prompts))
    return body.prompts, files.store(parts, source, "inline-prompts.jsonl", field="prompts").id


def _spec(parts: Parts, body: JobCreate, training: tuple[PromptSpec, ...]) -> TrainSpec:
    values = {name: getattr(body, name) for name in TrainSpec.model_fields if name in body.model_fields_set}
    values["prompts"] = training
    if body.validation_file:
        if body.evaluation.prompts:
            raise InvalidInput("give evaluation.prompts or validation_file, not both", field="validation_file")
        held_out = files.load(parts, body.validation_file, field="validation_file")
        if len(held_out) > 2000:
            raise InvalidInput(f"evaluation takes 2000 prompts at most, not {len(held_out)}", field="validation_file")
        values["evaluation"] = body.evaluation.model_copy(update={"prompts": tuple(held_out)})
    return TrainSpec(**{**values, **_from_hyperparameters(body, len(training))})


def _from_hyperparameters(body: JobCreate, prompt_count: int) -> dict[str, Any]:
    given = body.hyperparameters
    if given is None:
        return {}
    values: dict[str, Any] = {}
    per_step = body.prompts_per_step
    if given.batch_size != "auto":
        values["prompts_per_step"] = per_step = given.batch_size
    if given.n_epochs != "auto":
        if "steps" in body.model_fields_set:
            raise InvalidInput("give steps or hyperparameters.n_epochs, not both", field="hyperparameters.n_epochs")
        values["steps"] = math.ceil(given.n_epochs * prompt_count / per_step)
    if given.learning_rate_multiplier != "auto":
        rate = body.optimizer.lr * given.learning_rate_multiplier
        values["optimizer"] = body.optimizer.model_copy(update={"lr": rate})
    return values
