"""/v1/rewards: endpoints that jobs may name, and /v1/api_keys: callers' keys."""

from __future__ import annotations

import time
from pathlib import Path as FilePath
from typing import Annotated

import httpx
import numpy as np
import structlog
from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from redis.exceptions import RedisError

from dipole.broker.connection import describe_redis_error
from dipole.client import rewards_file
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint, check_reward_url
from dipole.client.rank_client import RankClient
from dipole.errors import ConfigurationError, DependencyUnavailable, InvalidInput
from dipole.protocol.schemas import Name, RewardInfo
from dipole.protocol.validation import check_storable
from dipole_trainer.api import schemas
from dipole_trainer.api.audit import changes_nothing
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, State
from dipole_trainer.api.json_route import JSONRoute

log = structlog.get_logger()


router = APIRouter(prefix="/v1/rewards", tags=["rewards"], route_class=JSONRoute)
RewardName = Annotated[str, Path(max_length=64, description="Name of the registered reward.", examples=["shapes"])]
CHECK_TIMEOUT_S = 5.0
SCORE_TIMEOUT_S = 30.0
RETRY_AFTER_S = 5.0  # where Redis does not answer


REGISTRATION_EXAMPLES: list[JsonValue] = [
    {"name": "shapes", "url": "http://127.0.0.1:8401"},
    {
        "name": "judge",
        "url": "https://judge.lan:8000",
        "kind": "vllm-score",
        "options": {"model": "Qwen/Qwen3-VL-Reranker-2B"},
        "tls": "lan",
    },
]


class RewardRegistration(Endpoint):
    """An endpoint to register. Registering a name again replaces all of it, its key too."""

    model_config = ConfigDict(json_schema_extra={"examples": REGISTRATION_EXAMPLES})

    name: Name = Field(description="Name that jobs will give.")
    description: str = Field(
        default="",
        max_length=2000,
        pattern=r"^[^\x00]*$",
        description="What the reward looks for, for people who choose one.",
    )


class RewardCheckResult(BaseModel):
    """What an endpoint said just now. `ok` when it is ready and offers what it was registered for.

    A server of another kind is asked to score two images too: it says too little of itself to be believed without.
    """

    object: str = Field(default="reward.check", description="What kind of object this is.")
    name: str = Field(description="Name of the reward.")
    url: str = Field(description="Base URL that was asked.")
    ok: bool = Field(description="Whether jobs can use the endpoint as it is.")
    ready: bool = Field(description="Whether the endpoint says that it is ready.")
    info: RewardInfo | None = Field(description="What the endpoint says of itself; null where it says nothing.")
    problem: str | None = Field(description="What is wrong, in a sentence.", examples=["GET /readyz answered 503"])
    seconds: float = Field(description="Time that the check took, in seconds.")


class RewardStatistics(BaseModel):
    """How an endpoint answered the last requests of rank workers, at most 200, whichever job they were of."""

    object: str = Field(default="reward.statistics", description="What kind of object this is.")
    name: str = Field(description="Name of the reward.")
    requests: int = Field(description="Number of requests that the other fields are of.")
    failures: dict[str, int] = Field(description="Failed ones by code.", examples=[{"timeout": 2}])
    p50_seconds: float | None = Field(description="Half of the answered ones took no longer.")
    p95_seconds: float | None = Field(description="All but the slowest twentieth of the answered ones took no longer.")
    since: float | None = Field(description="When the oldest of them ended, in Unix seconds.")
    last_at: float | None = Field(description="When the newest of them ended, in Unix seconds.")
    last_outcome: str | None = Field(description="`completed`, `pending`, or the code of a failure.")
    circuit: str | None = Field(description="Of the lane that asked last: `closed`, `open` or `half-open`.")
    revision: str | None = Field(description="The revision that answered last.")


def apply_rewards_file(state: ApiState, path: FilePath) -> None:
    """Register what a file declares, all of it or nothing; rewards that it does not name are left as they are.

    Raises ConfigurationError that names the file's entry, the field and the fix.
    """
    found = rewards_file.read_rewards_file(path)
    try:
        endpoints = {
            name: _check_endpoint(state, each.endpoint, field=f"rewards.{name}.") for name, each in found.items()
        }
    except InvalidInput as error:
        raise ConfigurationError(f"{path}: {error}") from None
    for name, endpoint in endpoints.items():
        _, changed = state.rewards.put_reward(name, endpoint, description=found[name].description)
        change = "registered" if changed is None else "changed" if changed else "unchanged"
        log.info("reward_declared", reward=name, change=change, changed=changed or [])
    if left := [row.name for row in state.rewards.list_rewards() if row.name not in found]:
        log.info("rewards_not_in_file", rewards=left, file=str(path))


@router.post("", summary="Register an endpoint, or replace it", dependencies=[require_scope("admin")])
def register_reward(state: State, body: RewardRegistration) -> schemas.RegisteredReward:
    """Jobs may name the endpoint from now on. Registering a name again replaces all of it, its key too."""
    endpoint = _check_endpoint(
        state, Endpoint(url=body.url, kind=body.kind, options=body.options, key=body.key, tls=body.tls)
    )
    return schemas.to_registered_reward(*state.rewards.put_reward(body.name, endpoint, description=body.description))


def _check_endpoint(state: ApiState, endpoint: Endpoint, *, field: str = "") -> Endpoint:
    """As it is stored. Raises InvalidInput that names the wrong field below `field`."""
    url = check_reward_url(endpoint.url, state.settings.reward_hosts, field=f"{field}url")
    check_storable(endpoint.options, f"{field}options")
    return endpoint.model_copy(update={"url": url})


@router.get("", summary="List endpoints", dependencies=[require_scope("train")])
def list_rewards(state: State) -> schemas.Paged[schemas.RewardObject | schemas.UnreadableObject]:
    """The list has every registered endpoint, without its key."""
    return schemas.page_of(schemas.show_rows(state.rewards.list_rewards(), schemas.to_reward_object), False)


@router.get("/{name}", summary="Retrieve an endpoint", dependencies=[require_scope("train")])
def retrieve_reward(state: State, name: RewardName) -> schemas.RewardObject:
    """The answer is the endpoint as it is registered, without its key."""
    return schemas.to_reward_object(state.rewards.get_reward(name))


@router.delete("/{name}", summary="Forget an endpoint that no open job uses", dependencies=[require_scope("admin")])
def delete_reward(state: State, name: RewardName) -> schemas.Deleted:
    """Jobs may no longer name the endpoint. It is refused while an open job uses it."""
    state.rewards.delete_reward(name)
    return schemas.Deleted(id=name, object="reward")


@router.post("/{name}/check", summary="Ask an endpoint whether it is ready", dependencies=[require_scope("train")])
@changes_nothing
def check_reward(state: State, name: RewardName) -> RewardCheckResult:
    """The endpoint is asked now for its readiness and its information; one of another kind is asked to score two
    images too.
    """
    url = state.rewards.get_reward(name).url
    check_reward_url(url, state.settings.reward_hosts, field="url")  # the allow-list may have changed since
    began = time.monotonic()
    ready, info, problem = _probe_reward(state, name)
    return RewardCheckResult(
        name=name,
        url=url,
        ok=problem is None,
        ready=ready,
        info=info,
        problem=problem,
        seconds=round(time.monotonic() - began, 3),
    )


@router.get(
    "/{name}/statistics",
    summary="How an endpoint has been answering rank workers",
    dependencies=[require_scope("train")],
    responses={503: {"description": "Redis does not answer."}},
)
def read_statistics(state: State, name: RewardName) -> RewardStatistics:
    """The answer sums up the last requests that rank workers made to the endpoint."""
    state.rewards.get_reward(name)
    try:
        found = state.endpoint_record.read_statistics(name)
    except RedisError as error:
        raise DependencyUnavailable(describe_redis_error(error), retry_after=RETRY_AFTER_S) from error
    last = found.last
    return RewardStatistics(
        name=name,
        requests=found.requests,
        failures=found.failures,
        p50_seconds=found.p50_s,
        p95_seconds=found.p95_s,
        since=found.since,
        last_at=last["at"] if last else None,
        last_outcome=last["outcome"] if last else None,
        circuit=last["circuit"] if last else None,
        revision=found.revision,
    )


def _probe_scores(client: RankClient, endpoint: Endpoint) -> str | None:
    """What is wrong with the scores of two images that differ. Raises EndpointError."""
    grey, noise = np.full((64, 64, 3), 128, np.uint8), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ranked = [client.rank("a grey square", [one], deadline_s=SCORE_TIMEOUT_S) for one in (grey, noise)]
    scores = [ranking.results[0].score for ranking in ranked]
    # a reward of UniRL's may look for what neither image has; a reranker always prefers one
    if endpoint.kind != "vllm-score" or scores[0] != scores[1]:
        return None
    return (
        f"two images that differ have the same score, {scores[0]}: the images do not reach the model; look at its chat "
        "template, and whether it is a reranker or embedder that sees"
    )


def _probe_reward(state: ApiState, name: str) -> tuple[bool, RewardInfo | None, str | None]:
    """(ready, info, what is wrong)."""
    ready, info = False, None
    try:
        endpoint = state.rewards.get_endpoint(name)
        with RankClient(endpoint, tls_dir=state.settings.tls_dir, transport=state.reward_transport) as client:
            status, path = client.probe_readiness(deadline_s=CHECK_TIMEOUT_S)
            ready = status == httpx.codes.OK
            if not ready:
                return False, None, f"GET {path} answered {status}"
            info = client.fetch_info(deadline_s=CHECK_TIMEOUT_S)
            return True, info, None if endpoint.kind == "dipole" else _probe_scores(client, endpoint)
    except (EndpointError, ConfigurationError, InvalidInput) as error:
        # InvalidInput: a row that another version wrote
        return ready, info, str(error)
