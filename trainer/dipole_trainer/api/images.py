"""/v1/images/generations: images of a base model, of a fine-tuned one or of a checkpoint, as OpenAI's images API."""

from __future__ import annotations

import base64
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from dipole.broker.image_requests import Place
from dipole.errors import InvalidInput
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import needs
from dipole_trainer.api.dependencies import Parts, Use
from dipole_trainer.api.sampler_client import Orders
from dipole_trainer.database.tables import Checkpoint, Job
from dipole_trainer.weights import base_models

GENERATOR = ("model", "revision", "tune", "lora", "precision", "resolution")  # what a spec says of its generator
MAX_SEED = 2**53 - 16  # seeds are exact in JSON
DESCRIPTION = (
    "`model` is a base as jobs may name it, a job's `fine_tuned_model`, a checkpoint's `fine_tuned_model_checkpoint` "
    "or its id. Image i is drawn from `seed` + i, alone: it is the same however many are asked for. Precision is the "
    "job's. A sampler (`dipole serve sampler`) draws; without one, or when it is busy for too long, the answer is 503."
)
_TUNED = re.compile(r"(ft:[^:]*:dipole:[^:]*:([0-9a-f]{8}))(?::ckpt-step-([0-9]{1,9}))?")


class ImageCreate(BaseModel):
    """Images to draw."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "tiny-turbo", "prompt": "a photo of a red square", "n": 2, "seed": 7}]
        },
    )

    model: str = Field(min_length=1, max_length=700, description="A base, or a fine-tuned model, by name or id.")
    prompt: str = Field(min_length=1, max_length=10_000)
    n: int = Field(default=1, ge=1, le=10, description="Images.")
    size: str = Field(
        default="auto", max_length=16, description="Square, as in 512x512; `auto`: the job's, or the model's own."
    )
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Of the first image; absent: drawn.")
    response_format: str = Field(default="b64_json", max_length=16, description="Only b64_json.")
    output_format: Literal["png"] = "png"
    user: str | None = Field(default=None, max_length=512, description="Whoever it is for; not used.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """A null is what some clients send where nothing was chosen."""
        return {name: each for name, each in values.items() if each is not None} if isinstance(values, dict) else values

    @field_validator("response_format")
    @classmethod
    def _inline(cls, value: str) -> str:
        if value != "b64_json":
            raise ValueError(f"{value!r} is not served, images come inside the answer: give b64_json, or leave it out")
        return value

    @field_validator("size")
    @classmethod
    def _square(cls, value: str) -> str:
        if value == "auto":
            return value
        match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
        if match is None:
            raise ValueError(f"{value!r} is no size: give one like 512x512, or auto")
        width, height = int(match[1]), int(match[2])
        if width != height:
            raise ValueError(f"{value} is not square: give {min(width, height)}x{min(width, height)}")
        if width % 8 or not width:
            near = max(8, width // 8 * 8)
            raise ValueError(f"{width} is no multiple of 8: give {near}x{near}")
        return value

    @property
    def side(self) -> int | None:
        return None if self.size == "auto" else int(self.size.partition("x")[0])


@dataclass(frozen=True)
class Source:
    """What draws: the fields of a spec that make its generator, and where the trained weights are."""

    generator: dict[str, Any]
    place: Place | None = None


def router(orders: Orders) -> APIRouter:
    routes = APIRouter(prefix="/v1/images", tags=["images"], dependencies=[needs("train")])

    @routes.post("/generations", summary="Draw images", description=DESCRIPTION, responses={503: {}})
    async def generate(parts: Use, body: ImageCreate, request: Request) -> schemas.ImagesResponse:
        _check_side(body.side, parts.settings.sampler_max_side)
        source = await run_in_threadpool(find, parts, body.model)
        generator = source.generator if body.side is None else {**source.generator, "resolution": body.side}
        first = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        seeds = [first + index for index in range(body.n)]
        try:
            images = await orders.draw(generator, source.place, body.prompt, seeds, request.is_disconnected)
        except InvalidInput as error:  # the sampler speaks of a spec's fields
            raise InvalidInput(str(error), field="size" if error.field == "resolution" else "model") from error
        return await run_in_threadpool(_response, body, source, seeds, images)

    return routes


def find(parts: Parts, name: str) -> Source:
    """What a caller's `model` means. Raises InvalidInput on it."""
    if name.startswith("ftckpt-"):
        row, job = _checkpoint(parts, Checkpoint.id == name, f"checkpoint {name}")
    elif name.startswith("ft:"):
        row, job = _tuned(parts, name)
    else:
        base_models.check_name(name, parts.settings.models_dir)
        return Source({"model": name})
    generator = {field: job.summary[field] for field in GENERATOR if field in job.summary}
    return Source(generator, Place(id=row.id, job=job.id, path=row.path))


def _tuned(parts: Parts, name: str) -> tuple[Checkpoint, Job]:
    """The checkpoint of a name that wire.tuned_name made; without a step the job's last."""
    match = _TUNED.fullmatch(name)
    job = None
    if match is not None:
        with parts.database.reading() as session:
            like = session.scalars(select(Job).where(Job.id.startswith(f"ftjob-{match[2]}")))
            job = next((each for each in like if schemas.tuned_name(each) == match[1]), None)
    if match is None or job is None:
        raise InvalidInput(
            f"unknown model {name!r}: no job has this fine_tuned_model or fine_tuned_model_checkpoint", field="model"
        )
    if match[3] is not None:
        return _checkpoint(parts, (Checkpoint.job_id == job.id) & (Checkpoint.step == int(match[3])), name)
    if job.state != "succeeded":
        raise InvalidInput(
            f"job {job.id} is {job.state} and has no fine-tuned model: name one of its checkpoints", field="model"
        )
    return _checkpoint(parts, Checkpoint.job_id == job.id, name)


def _checkpoint(parts: Parts, which: Any, name: str) -> tuple[Checkpoint, Job]:
    """The latest such checkpoint and its job."""
    query = select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id).where(which)
    with parts.database.reading() as session:
        found = session.execute(query.order_by(Checkpoint.step.desc()).limit(1)).first()
    if found is None:
        raise InvalidInput(f"{name} is not there: it may have been pruned; a job lists its checkpoints", field="model")
    return found[0], found[1]


def _check_side(side: int | None, limit: int) -> None:
    if side is not None and side > limit:
        raise InvalidInput(f"size: {side} exceeds {limit} (DIPOLE_SAMPLER_MAX_SIDE): give a smaller one", field="size")


def _response(body: ImageCreate, source: Source, seeds: list[int], images: list[bytes]) -> schemas.ImagesResponse:
    width, height = (int.from_bytes(images[0][at : at + 4], "big") for at in (16, 20))  # of a PNG's first chunk
    data = [
        schemas.ImageObject(b64_json=base64.b64encode(image).decode(), seed=seed)
        for image, seed in zip(images, seeds, strict=True)
    ]
    checkpoint = source.place["id"] if source.place else None
    return schemas.ImagesResponse(
        created=int(time.time()), data=data, size=f"{width}x{height}", model=body.model, checkpoint=checkpoint
    )
