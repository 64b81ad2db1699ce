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

MediaType = Literal["image/png", "image/webp", "image/jpeg", "application/x-npy", "application/x-npy-latents"]
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

    media_type: MediaType = Field(description="How the image is encoded.")
    data: str | None = Field(default=None, description="The encoded image in base64; absent in multipart requests.")


class Candidate(ProtocolMessage):
    """One image of a group."""

    id: Identifier = Field(description="Id of the candidate, unique in its request.")
    image: ImageData = Field(description="The candidate's image.")


class RankRequest(ProtocolMessage):
    """One group: K candidates for one prompt, to be ordered best to worst."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARS, description="Text that the candidates were drawn for.")
    candidates: Many[Candidate] = Field(min_length=1, description="Images to be ordered.")
    metadata: dict[str, JsonValue] | None = Field(default=None, description="What the prompt asks for, as in GenEval.")
    progress: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None,
        description="How far the training that asks has come: its updates done, of all of them. Absent outside "
        "training, in evaluations, and for an endpoint whose /v1/info does not want it.",
    )
    vae: str | None = Field(
        default=None,
        max_length=128,
        description="Fingerprint of the VAE whose latents the candidates are, as /v1/info says it; 415 where it is "
        "another one by now. Absent where they are images.",
    )
    stored: str | None = Field(
        default=None,
        max_length=128,
        description="Reference of the group's candidates in the folder that /v1/info names as `memory`: they are read "
        "from there, as the numpy arrays that their media types say, and none has data. 415 where they are not there.",
    )
    callback_url: str | None = Field(
        default=None, max_length=2048, description="URL that a ranking of 202 is sent to when it has finished."
    )

    @model_validator(mode="after")
    def _check_unique_ids(self) -> RankRequest:
        ids = [candidate.id for candidate in self.candidates]
        if len(set(ids)) != len(ids):
            raise ValueError("candidates: ids must be unique within a request")
        return self


class ItemError(ProtocolMessage):
    """Why one candidate has no score."""

    code: str = Field(description="The reason in a word, for programs.")
    message: str = Field(description="The reason in a sentence, for people.")


class RankedItem(ProtocolMessage):
    """One candidate's result. `rank` 1 is best and ties share a rank; a failure is null with an error, never 0.

    Ranks without scores are right where no candidate has a score and /v1/info says `calibrated: false`.
    """

    id: Identifier = Field(description="Id of the candidate.")
    score: Score | None = Field(description="Score of the candidate, higher is better; null where it has none.")
    rank: RankNumber | None = Field(
        default=None, description="Place of the candidate, where 1 is best and ties share one; null where it failed."
    )
    tier: RankNumber | None = Field(
        default=None, description="Tier that a ranker put it in, where 1 is best; null where it has no tiers."
    )
    sub_scores: dict[str, Score] | None = Field(
        default=None, description="Parts of the score by name; null where it has none."
    )
    error: ItemError | None = Field(default=None, description="Why the candidate has no score; null where it has one.")


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

    id: str = Field(description="Id of the ranking.")
    object: Literal["ranking"] = Field(default="ranking", description="What kind of object this is.")
    created: Annotated[int, BeforeValidator(_drop_fraction)] = Field(description="Unix time, seconds.")
    model: Version = Field(description="Model that ranked.")
    model_revision: Version = Field(description="Revision of the model's weights.")
    recipe_version: Version = Field(description="Version of how scores are computed from the model.")
    status: Literal["completed"] = Field(default="completed", description="Always `completed`.")
    results: Many[RankedItem] = Field(description="A result for each candidate, in the order of the request.")
    usage: Annotated[dict[str, Any], BeforeValidator(_empty_if_null)] = Field(
        default_factory=dict, description="What the ranking took, such as `images` and `seconds`."
    )

    def scores_or_ranks(self) -> tuple[list[float | None], bool]:
        """A number for each candidate, higher is better, and whether these are negated ranks: some endpoints only rank
        (people, judges of pairs), and none of their candidates has a score.
        """
        scores: list[float | None] = [item.score for item in self.results]
        if any(score is not None for score in scores) or not any(item.rank for item in self.results):
            return scores, False
        return [None if item.rank is None else -float(item.rank) for item in self.results], True


class PendingRanking(ProtocolMessage):
    """202: a slow ranker took the request. Poll `Location` after `Retry-After`, or wait for the callback."""

    id: str = Field(description="Id that the ranking is asked for by.")
    object: Literal["ranking"] = Field(default="ranking", description="What kind of object this is.")
    status: Literal["pending", "cancelled", "failed"] = Field(default="pending", description="State of the ranking.")
    error: ItemError | None = Field(default=None, description="Why it failed; null where it did not.")


class LatentSpace(ProtocolMessage):
    """Latents that an endpoint takes in place of images: those of one VAE, float16 (channels, height, width)."""

    vae: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Fingerprint of the VAE whose latents are taken: of its configuration, precision and weights.",
    )
    channels: int = Field(ge=1, le=256, description="Channels of a candidate's latents.")
    scale: int = Field(ge=1, le=64, description="Pixels of an image's side for each of its latents' side.")


class RewardInfo(ProtocolMessage):
    """What an endpoint says of itself on `GET /v1/info`."""

    name: str = Field(description="Name of the reward.")
    model: Version = Field(description="Model that ranks.")
    model_revision: Version = Field(description="Revision of the model's weights.")
    recipe_version: Version = Field(description="Version of how scores are computed from the model.")
    protocol_version: str = Field(default=PROTOCOL_VERSION, description="Version of the ranking protocol.")
    media_types: Many[MediaType] = Field(description="Encodings of images that are accepted.")
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, description="Most candidates of one request.")
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, description="Most pixels of one image.")
    calibrated: bool = Field(
        default=True, description="False when only the order means something; ranks may then come alone."
    )
    verified: bool | None = Field(
        default=None,
        description="Of published weights: whether the published implementation is known to give the same score. Null "
        "where there is none to compare.",
    )
    wants: Many[Literal["progress"]] = Field(
        default_factory=list, description="What it wants to be told beside the images: `progress` of the training."
    )
    deterministic: bool | None = Field(
        default=None,
        description="Whether an equal request always gets the same scores, of this revision and recipe: a trainer may "
        "then keep them for other jobs. Null where it does not say, which counts as no.",
    )
    multipart: bool = Field(default=True, description="Whether images may be sent as parts of multipart/form-data.")
    latents: LatentSpace | None = Field(
        default=None, description="The latents that are taken in place of images; absent where none are."
    )
    memory: str | None = Field(
        default=None,
        max_length=64,
        description="Id of the folder in its machine's memory that candidates are read from (`stored`), for callers "
        "on the same machine; absent where none is.",
    )

    @model_validator(mode="after")
    def _check_latents(self) -> RewardInfo:
        if (self.latents is not None) != ("application/x-npy-latents" in self.media_types):
            raise ValueError("latents are described where media_types has application/x-npy-latents, and only there")
        return self


class WeightsState(ProtocolMessage):
    """Where a reward's weights are, after `POST /v1/sleep` or `POST /v1/wake`."""

    object: Literal["reward.weights"] = Field(default="reward.weights", description="What kind of object this is.")
    status: Literal["asleep", "awake"] = Field(
        description="`asleep`: in the memory of the host; `awake`: on the device that computes."
    )
    moved_bytes: int = Field(
        default=0, ge=0, description="Bytes that this request moved; 0 where they were there, or there are none."
    )
    seconds: float = Field(default=0.0, ge=0, description="Time that moving them took, in seconds.")


class FieldError(ProtocolMessage):
    """A wrong field of a request."""

    field: str = Field(description="Path of the wrong field.")
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """RFC 9457 problem+json. `errors` names each wrong field."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(default="about:blank", description="Kind of the problem, as a URI.")
    title: str = Field(description="Kind of the problem, in words.")
    status: int = Field(description="HTTP status of the answer.")
    detail: str | None = Field(default=None, description="What is wrong and how to mend it, in a sentence.")
    errors: Many[FieldError] = Field(default_factory=list, description="Each wrong field, where fields are to blame.")
