"""/v1/models: what jobs and image requests may give as `model`, as OpenAI's clients list it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from dipole.errors import InvalidInput, NotFound
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ListQuery, State
from dipole_trainer.registry.model_names import find_model, list_models

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[require_scope("train")])
ModelName = Annotated[
    str, Path(max_length=700, description="Name of the model, which may have slashes.", examples=["tiny-turbo"])
]


class ModelsQuery(ListQuery):
    """How many fine-tuned models."""

    limit: int = Field(
        default=1000, ge=1, le=1000, description="Number of checkpoints, the newest, whose names follow the bases'."
    )


@router.get("", summary="List base models, then fine-tuned ones and checkpoints, newest first")
def list_all_models(state: State, query: Annotated[ModelsQuery, Query()]) -> schemas.Paged[schemas.ModelObject]:
    """The list has what jobs and image requests may give as `model`."""
    found = list_models(state.database, state.settings.models_dir, limit=query.limit)
    return schemas.page_of([schemas.to_model_object(each) for each in found], False)


@router.get("/{model:path}", summary="Retrieve a model; the weights of a base may be missing on the worker")
def retrieve_model(state: State, model: ModelName) -> schemas.ModelObject:
    """The answer says what the name stands for."""
    try:
        return schemas.to_model_object(find_model(model, state.database, state.settings.models_dir))
    except InvalidInput as error:
        raise NotFound(str(error)) from error
