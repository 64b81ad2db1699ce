"""What travels through Redis, as JSON: messages on the queues, and the answers to them. Their fields are named here.

    ranker        RankMessage    ->   rank worker    pushes a RankAnswer to the run
    API           ImageRequest   ->   sampler        pushes an ImageAnswer to the request
    API           PlanRequest    ->   sampler        pushes a PlanAnswer to the request

An answer's `status` says which of its type's forms it has.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from dipole.protocol.schemas import Ranking, RewardInfo


class RunRecord(TypedDict):
    """One ranker's record in Redis: where its work goes, as `Endpoint.to_record` has it, keys sealed by a Vault."""

    rewards: dict[str, dict[str, Any]]


class RankMessage(TypedDict):
    """One reward's ranking of one group. `key` is the same for the same question; `candidates` names the images."""

    run: str
    group: str
    reward: str
    key: str
    candidates: str
    vae: NotRequired[str | None]  # whose latents the candidates are; of images none
    count: int
    prompt: str
    metadata: dict[str, Any] | None
    progress: NotRequired[float | None]  # of the training, for endpoints that want it
    location: str | None  # of a ranking that is pending at the endpoint
    deadline: float  # by Redis's clock
    withdraw: NotRequired[bool]  # nobody waits any more for what is pending at `location`: tell the endpoint


class RankAnswer(TypedDict):
    """What a lane says of a message.

    completed   scores in candidate order (null: none), sub-scores, `errors` by index, and what gave them
    failed      `code` and `message`; `retryable` after `retry_after` seconds
    pending     at the endpoint, which said `location` and `retry_after`
    missing     the images are no longer in Redis
    as_images   the endpoint takes no latents of that VAE, as `message` says: it is to be sent images
    claimed     another lane works on the same question
    """

    status: Literal["completed", "failed", "pending", "missing", "as_images", "claimed"]
    group: NotRequired[str]
    reward: NotRequired[str]
    key: NotRequired[str]
    seconds: NotRequired[float]
    # completed
    scores: NotRequired[list[float | None]]
    ordinal: NotRequired[bool]
    sub_scores: NotRequired[dict[str, list[float | None]]]
    errors: NotRequired[dict[str, str]]
    model: NotRequired[str]
    model_revision: NotRequired[str]
    recipe_version: NotRequired[str]
    verified: NotRequired[bool | None]  # as RewardInfo says it
    is_mismatch: NotRequired[bool]  # as_images: it takes latents of another VAE
    deterministic: NotRequired[bool | None]  # whether an equal group gets the same scores, whenever it is asked
    # failed, pending, missing, as_images
    code: NotRequired[str]
    message: NotRequired[str]
    retryable: NotRequired[bool]
    retry_after: NotRequired[float | None]
    http_status: NotRequired[int | None]
    location: NotRequired[str]


def failure_answer(
    code: str, message: str, *, retryable: bool, retry_after: float | None = None, http_status: int | None = None
) -> RankAnswer:
    return {
        "status": "failed",
        "code": code,
        "message": message,
        "retryable": retryable,
        "retry_after": retry_after,
        "http_status": http_status,
    }


def ranking_answer(ranking: Ranking, info: RewardInfo) -> RankAnswer:
    """A ranking of an endpoint that says `info` of itself: scores in candidate order, reasons by index.

    Of an endpoint that is not calibrated scores are an order, as ranks are.
    """
    scores, ranks_alone = ranking.scores_or_ranks()
    errors = {
        str(index): f"{item.error.code}: {item.error.message}"
        for index, item in enumerate(ranking.results)
        if scores[index] is None and item.error is not None
    }
    parts = sorted({name for item in ranking.results for name in item.sub_scores or {}})
    return {
        "status": "completed",
        "scores": scores,
        "ordinal": ranks_alone or not info.calibrated,
        "sub_scores": {name: [(item.sub_scores or {}).get(name) for item in ranking.results] for name in parts},
        "errors": errors,
        "model": ranking.model,
        "model_revision": ranking.model_revision,
        "recipe_version": ranking.recipe_version,
        "verified": info.verified,
        "deterministic": info.deterministic and not info.wants,
    }


class CheckpointRef(TypedDict):
    """Where a checkpoint lies in the artifacts: `jobs/<job>/<path>`."""

    id: str
    job: str
    path: str


class ImageRequest(TypedDict):
    """What is to be drawn. `order` is the request's id; `model` are the fields of a spec that make a generator."""

    order: str
    model: dict[str, Any]
    checkpoint: CheckpointRef | None  # none: the base
    prompt: str
    seeds: list[int]
    deadline: float  # by Redis's clock


class ImageAnswer(TypedDict):
    """drawn: references of `images`, and a `warning` where not all was done as asked. refused: the caller's `field` is
    wrong. busy: `retry_after`. failed: our fault.
    """

    status: Literal["drawn", "refused", "busy", "failed"]
    images: NotRequired[list[str]]
    warning: NotRequired[str | None]
    message: NotRequired[str]
    field: NotRequired[str | None]
    retry_after: NotRequired[float]


class PlanRequest(TypedDict):
    """What is to be planned. `job` are the fields of a job to create, its prompts left out; `devices` are names."""

    order: str
    job: dict[str, Any]
    devices: list[str]
    chunk_size: int | None
    deadline: float  # by Redis's clock


class PlanAnswer(TypedDict):
    """planned: a plan for each device, as `dipole plan --json` prints it, and `remarks` in sentences. The others as of
    an ImageAnswer.
    """

    status: Literal["planned", "refused", "busy", "failed"]
    plans: NotRequired[list[dict[str, Any]]]
    remarks: NotRequired[list[str]]
    message: NotRequired[str]
    field: NotRequired[str | None]
    retry_after: NotRequired[float]
