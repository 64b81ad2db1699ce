"""/v1/images/generations: images of a base model, of a fine-tuned one or of a checkpoint, as OpenAI's images API."""

from __future__ import annotations

import base64
import re
import secrets
import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, field_validator, model_validator
from starlette.concurrency import run_in_threadpool

from dipole.errors import InvalidInput
from dipole.protocol.schemas import StrictModel
from dipole_trainer.api import schemas
from dipole_trainer.api.audit import changes_nothing
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import State
from dipole_trainer.api.json_route import JSONRoute
from dipole_trainer.api.sampler_client import DrawnImages, SamplerClient
from dipole_trainer.registry.model_names import ModelSource, find_model_source

MAX_SEED = 2**53 - 16  # seeds are exact in JSON
GENERATIONS_DESCRIPTION = (
    "`model` is a base as jobs may name it, a job's `fine_tuned_model`, a checkpoint's `fine_tuned_model_checkpoint` "
    "or its id. Image i is drawn from `seed` + i, alone: it is the same however many are asked for. Precision is the "
    "job's. A sampler (`dipole serve sampler`) draws; without one, or when it is busy for too long, the answer is 503."
)


class ImageGenerationRequest(StrictModel):
    """Images to draw."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "tiny-turbo", "prompt": "a photo of a red square", "n": 2, "seed": 7}]
        },
    )

    model: str = Field(min_length=1, max_length=700, description="A base, or a fine-tuned model, by name or id.")
    prompt: str = Field(min_length=1, max_length=10_000, description="Text that images are drawn for.")
    n: int = Field(default=1, ge=1, le=10, description="Number of images.")
    size: str = Field(
        default="auto",
        max_length=16,
        description="Size of the square images, as in 512x512; `auto` is the job's, or the model's own.",
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Seed of the first image; drawn at random if absent."
    )
    response_format: str = Field(
        default="b64_json", max_length=16, description="How images are returned; only b64_json is known."
    )
    output_format: Literal["png"] = Field(default="png", description="Format of the images; only png is known.")
    user: str | None = Field(default=None, max_length=512, description="Whoever the images are for; it is not used.")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """A null is what some clients send where nothing was chosen."""
        return {name: each for name, each in values.items() if each is not None} if isinstance(values, dict) else values

    @field_validator("response_format")
    @classmethod
    def _check_response_format(cls, value: str) -> str:
        if value != "b64_json":
            raise ValueError(f"{value!r} is not served, images come inside the answer: give b64_json, or leave it out")
        return value

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: str) -> str:
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


def create_router(orders: SamplerClient) -> APIRouter:
    routes = APIRouter(
        prefix="/v1/images", tags=["images"], dependencies=[require_scope("train")], route_class=JSONRoute
    )

    @routes.post("/generations", summary="Draw images", description=GENERATIONS_DESCRIPTION, responses={503: {}})
    @changes_nothing
    async def generate_images(state: State, body: ImageGenerationRequest, request: Request) -> schemas.ImagesResponse:
        _check_side(body.side, state.settings.sampler_max_side)
        source = await run_in_threadpool(find_model_source, body.model, state.database, state.settings.models_dir)
        generator = source.generator if body.side is None else {**source.generator, "resolution": body.side}
        first = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        seeds = [first + index for index in range(body.n)]
        try:
            drawn = await orders.draw_images(generator, source.checkpoint, body.prompt, seeds, request.is_disconnected)
        except InvalidInput as error:
            # the sampler speaks of a spec's fields
            raise InvalidInput(str(error), field="size" if error.field == "resolution" else "model") from error
        return await run_in_threadpool(_images_response, body, source, seeds, drawn)

    return routes


def _check_side(side: int | None, limit: int) -> None:
    if side is not None and side > limit:
        raise InvalidInput(f"size: {side} exceeds {limit} (DIPOLE_SAMPLER_MAX_SIDE): give a smaller one", field="size")


def _images_response(
    body: ImageGenerationRequest, source: ModelSource, seeds: list[int], drawn: DrawnImages
) -> schemas.ImagesResponse:
    images = drawn.images
    width, height = (int.from_bytes(images[0][at : at + 4], "big") for at in (16, 20))  # of a PNG's first chunk
    data = [
        schemas.ImageObject(b64_json=base64.b64encode(image).decode(), seed=seed)
        for image, seed in zip(images, seeds, strict=True)
    ]
    checkpoint = source.checkpoint["id"] if source.checkpoint else None
    return schemas.ImagesResponse(
        created=int(time.time()),
        data=data,
        size=f"{width}x{height}",
        model=body.model,
        checkpoint=checkpoint,
        warning=drawn.warning,
    )
