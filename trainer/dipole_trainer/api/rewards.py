"""/v1/rewards: endpoints that jobs may name, and /v1/api_keys: callers' keys."""

from __future__ import annotations

import json
import time
from typing import Annotated

import httpx
from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from dipole.errors import InvalidInput
from dipole.schemas import RewardInfo
from dipole_trainer.api import wire
from dipole_trainer.api.parts import Parts, Use, needs
from dipole_trainer.catalogue import KeyScope, check_reward_url
from dipole_trainer.models import Reward
from dipole_trainer.spec import Name

router = APIRouter(prefix="/v1/rewards", tags=["rewards"])
keys = APIRouter(prefix="/v1/api_keys", tags=["keys"], dependencies=[needs("admin")])
RewardName = Annotated[str, Path(max_length=64, examples=["shapes"])]
CHECK_TIMEOUT_S = 5.0
MAX_INFO_BYTES = 2**20


class RewardRegistration(BaseModel):
    """An endpoint to register. Registering a name again replaces all of it, its key too."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "shapes", "url": "http://127.0.0.1:8401"}]}
    )

    name: Name
    url: str = Field(max_length=2048, description="Base URL; its host must be one of DIPOLE_REWARD_HOSTS.")
    key: SecretStr | None = Field(default=None, max_length=4096, description="Bearer key sent to it; never shown.")
    description: str = Field(default="", max_length=2000, pattern=r"^[^\x00]*$")


class RewardCheck(BaseModel):
    """What an endpoint said just now. `ok` when it is ready and describes itself as the protocol wants."""

    object: str = "reward.check"
    name: str
    url: str
    ok: bool
    ready: bool
    info: RewardInfo | None
    problem: str | None = Field(description="What is wrong, in a sentence.", examples=["GET /readyz answered 503"])
    seconds: float


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "ann", "scopes": ["train"]}]})

    name: str = Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")
    scopes: list[KeyScope] = Field(min_length=1, max_length=3)


@router.post("", summary="Register an endpoint, or replace it", dependencies=[needs("admin")])
def register(parts: Use, body: RewardRegistration) -> wire.RewardObject:
    url = check_reward_url(body.url, parts.settings.reward_hosts, field="url")
    key = body.key.get_secret_value() if body.key else None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InvalidInput("key must be printable ASCII: it is sent in a header", field="key")
    return wire.reward_object(parts.catalogue.put_reward(body.name, url, key=key, description=body.description))


@router.get("", summary="List endpoints", dependencies=[needs("train")])
def list_rewards(parts: Use) -> wire.Paged[wire.RewardObject]:
    return wire.paged([wire.reward_object(row) for row in parts.catalogue.rewards()], False)


@router.get("/{name}", summary="Retrieve an endpoint", dependencies=[needs("train")])
def retrieve(parts: Use, name: RewardName) -> wire.RewardObject:
    return wire.reward_object(parts.catalogue.reward(name))


@router.delete("/{name}", summary="Forget an endpoint that no open job uses", dependencies=[needs("admin")])
def delete(parts: Use, name: RewardName) -> wire.Deleted:
    parts.catalogue.delete_reward(name)
    return wire.Deleted(id=name, object="reward")


@router.post("/{name}/check", summary="Ask an endpoint whether it is ready", dependencies=[needs("train")])
def check(parts: Use, name: RewardName) -> RewardCheck:
    row = parts.catalogue.reward(name)
    check_reward_url(row.url, parts.settings.reward_hosts, field="url")  # the allow-list may have changed since
    began = time.monotonic()
    ready, info, problem = _ask(parts, row)
    seconds = round(time.monotonic() - began, 3)
    ok = ready and info is not None
    return RewardCheck(name=name, url=row.url, ok=ok, ready=ready, info=info, problem=problem, seconds=seconds)


def _ask(parts: Parts, row: Reward) -> tuple[bool, RewardInfo | None, str | None]:
    """(ready, info, what is wrong)."""
    headers = {"authorization": f"Bearer {row.key}"} if row.key else {}
    ready = False
    with httpx.Client(
        base_url=row.url, headers=headers, timeout=CHECK_TIMEOUT_S, transport=parts.reward_transport, trust_env=False
    ) as client:
        try:
            with client.stream("GET", "/readyz") as answer:  # its body is never read
                status = answer.status_code
            ready = status == 200
            if not ready:
                return False, None, f"GET /readyz answered {status}"
            with client.stream("GET", "/v1/info") as answer:
                if answer.status_code != 200:
                    return True, None, f"GET /v1/info answered {answer.status_code}"
                return True, RewardInfo.model_validate(json.loads(_bounded(answer))), None
        except httpx.HTTPError as error:
            return ready, None, f"no answer: {type(error).__name__}"
        except (ValidationError, ValueError, RecursionError):
            return ready, None, "GET /v1/info is not what the protocol says; run `dipole rewards check` on it"


def _bounded(answer: httpx.Response) -> bytes:
    data = b""
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > MAX_INFO_BYTES:
            raise ValueError("too large")
    return data


@keys.post("", summary="Make a key; its text is in this answer only")
def create_key(parts: Use, body: KeyCreate) -> wire.KeyObject:
    row, text = parts.catalogue.create_key(body.name, body.scopes)
    return wire.key_object(row, text)


@keys.get("", summary="List keys")
def list_keys(parts: Use) -> wire.Paged[wire.KeyObject]:
    return wire.paged([wire.key_object(row) for row in parts.catalogue.api_keys()], False)


@keys.delete("/{key_id}", summary="Revoke a key")
def revoke(parts: Use, key_id: Annotated[str, Path(max_length=64)]) -> wire.Deleted:
    parts.catalogue.revoke_key(key_id)
    return wire.Deleted(id=key_id, object="api_key")
