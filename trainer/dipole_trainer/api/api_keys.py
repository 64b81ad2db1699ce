"""/v1/api_keys: make, list and revoke callers' keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from dipole_trainer.api import schemas
from dipole_trainer.api.auth import needs
from dipole_trainer.api.dependencies import Use
from dipole_trainer.registry.api_keys import KeyScope

keys = APIRouter(prefix="/v1/api_keys", tags=["keys"], dependencies=[needs("admin")])


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "ann", "scopes": ["train"]}]})

    name: str = Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")
    scopes: list[KeyScope] = Field(min_length=1, max_length=3)


@keys.post("", summary="Make a key; its text is in this answer only")
def create_key(parts: Use, body: KeyCreate) -> schemas.KeyObject:
    row, text = parts.api_keys.create_key(body.name, body.scopes)
    return schemas.key_object(row, text)


@keys.get("", summary="List keys")
def list_keys(parts: Use) -> schemas.Paged[schemas.KeyObject]:
    return schemas.paged([schemas.key_object(row) for row in parts.api_keys.api_keys()], False)


@keys.delete("/{key_id}", summary="Revoke a key")
def revoke(parts: Use, key_id: Annotated[str, Path(max_length=64)]) -> schemas.Deleted:
    parts.api_keys.revoke_key(key_id)
    return schemas.Deleted(id=key_id, object="api_key")
