"""/v1/api_keys: make, list and revoke callers' keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import ConfigDict, Field

from dipole.protocol.schemas import Many, StrictModel
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import State
from dipole_trainer.api.json_route import JSONRoute
from dipole_trainer.registry.api_keys import KeyScope

router = APIRouter(prefix="/v1/api_keys", tags=["keys"], dependencies=[require_scope("admin")], route_class=JSONRoute)


class ApiKeyRequest(StrictModel):
    """A key to make."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ann", "scopes": ["train"]}]})

    name: str = Field(
        min_length=1, max_length=255, pattern=r"^[^\x00]*$", description="Name of whoever will hold the key."
    )
    scopes: Many[KeyScope] = Field(
        min_length=1, max_length=3, description="What the key may do; `admin` may do everything."
    )


@router.post("", summary="Make a key; its text is in this answer only")
def create_key(state: State, body: ApiKeyRequest) -> schemas.KeyObject:
    """The key's text is in this answer and nowhere else: it is stored as a hash."""
    row, text = state.api_keys.create_key(body.name, body.scopes)
    return schemas.to_key_object(row, text)


@router.get("", summary="List keys")
def list_keys(state: State) -> schemas.Paged[schemas.KeyObject | schemas.UnreadableObject]:
    """The list has every key, without its text."""
    return schemas.page_of(schemas.show_rows(state.api_keys.list_keys(), schemas.to_key_object), False)


@router.delete("/{key_id}", summary="Revoke a key")
def revoke_key(
    state: State, key_id: Annotated[str, Path(max_length=64, description="Id of the key.")]
) -> schemas.Deleted:
    """Requests with the key are refused from now on."""
    state.api_keys.revoke_key(key_id)
    return schemas.Deleted(id=key_id, object="api_key")
