"""The ranking protocol, version 1: what travels between a trainer and any reward endpoint.

`POST /v1/rank` takes a RankRequest and answers a Ranking; `GET /v1/info` answers a RewardInfo. Every model refuses
unknown fields, so a misspelt one is an error and not a silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, JsonValue, model_validator

PROTOCOL_VERSION = "1"
MAX_PROMPT_CHARS = 10_000
MAX_CANDIDATES = 64
MAX_PIXELS = 4096 * 4096
MAX_BODY_BYTES = 256 * 2**20
MAX_FIELD_ERRORS = 20  # that a problem document names

MediaType = Literal["image/png", "image/webp", "image/jpeg", "application/x-npy"]
T = TypeVar("T")
Many = Annotated[list[T], FailFast()]  # one error is enough: a body of a megabyte may hold a million
Identifier = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")]
# a number: neither true nor "0.5" becomes one
Score = Annotated[float, Field(strict=True, allow_inf_nan=False)]
RankNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]  # of a reward, for one
Version = Annotated[str, Field(max_length=255)]  # as long as a ledger keeps it


class StrictModel(BaseModel):
    """Unknown fields are errors: a few are named, many are counted, because an error takes a kilobyte of memory."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # inputs hold prompts

    @model_validator(mode="before")
    @classmethod
    def _count_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > len(cls.model_fields) + MAX_FIELD_ERRORS:
            first = next(name for name in values if name not in cls.model_fields)
            raise ValueError(f"{len(values)} fields are given, {str(first)[:64]!r} among them, which is unknown")
        return values


class ProtocolMessage(StrictModel):
    """A message; instances are frozen."""

    model_config = ConfigDict(frozen=True)


class ImageData(ProtocolMessage):
    """An image as bytes. `data` is base64; in multipart requests it is absent and the part named by the id has it."""

    media_type: MediaType
    data: str | None = None


class Candidate(ProtocolMessage):
    id: Identifier
    image: ImageData


class RankRequest(ProtocolMessage):
    """One group: K candidates for one prompt, to be ordered best to worst."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    candidates: Many[Candidate] = Field(min_length=1)
    metadata: dict[str, JsonValue] | None = Field(default=None, description="What the prompt asks for, as in GenEval.")
    callback_url: str | None = Field(default=None, max_length=2048)

    @model_validator(mode="after")
    def _check_unique_ids(self) -> RankRequest:
        ids = [candidate.id for candidate in self.candidates]
        if len(set(ids)) != len(ids):
            raise ValueError("candidates: ids must be unique within a request")
        return self


class ItemError(ProtocolMessage):
    """Why one candidate has no score."""

    code: str
    message: str


class RankedItem(ProtocolMessage):
    """One candidate's result. `rank` 1 is best and ties share a rank; a failure is null with an error, never 0.

    Ranks without scores are right where no candidate has a score and /v1/info says `calibrated: false`.
    """

    id: Identifier
    score: Score | None
    rank: RankNumber | None = None
    tier: RankNumber | None = None
    sub_scores: dict[str, Score] | None = None
    error: ItemError | None = None


def rank_scores(scores: Sequence[float | None]) -> list[int | None]:
    """1 is best, equal scores share a rank, and as many ranks follow free: 1, 2, 2, 4."""
    return [None if one is None else 1 + sum(other is not None and other > one for other in scores) for one in scores]


def _drop_fraction(value: Any) -> Any:
    """As clocks of most languages give the time."""
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


def _empty_if_null(value: Any) -> Any:
    return {} if value is None else value


class Ranking(ProtocolMessage):
    """The answer to a RankRequest; `results` stand in the order of its candidates."""

    id: str
    object: Literal["ranking"] = "ranking"
    created: Annotated[int, BeforeValidator(_drop_fraction)] = Field(description="Unix time, seconds.")
    model: Version
    model_revision: Version
    recipe_version: Version
    status: Literal["completed"] = "completed"
    results: Many[RankedItem]
    usage: Annotated[dict[str, Any], BeforeValidator(_empty_if_null)] = Field(default_factory=dict)


class PendingRanking(ProtocolMessage):
    """202: a slow ranker took the request. Poll `Location` after `Retry-After`, or wait for the callback."""

    id: str
    object: Literal["ranking"] = "ranking"
    status: Literal["pending", "cancelled", "failed"] = "pending"
    error: ItemError | None = None


class RewardInfo(ProtocolMessage):
    """What an endpoint says of itself on `GET /v1/info`."""

    name: str
    model: Version
    model_revision: Version
    recipe_version: Version
    protocol_version: str = PROTOCOL_VERSION
    media_types: Many[MediaType]
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    calibrated: bool = Field(
        default=True, description="False when only the order means something; ranks may then come alone."
    )
    verified: bool | None = Field(
        default=None,
        description="Of published weights: whether the published implementation is known to give the same score. Null "
        "where there is none to compare.",
    )
    multipart: bool = True


class FieldError(ProtocolMessage):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem+json. `errors` names each wrong field."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: Many[FieldError] = Field(default_factory=list)
