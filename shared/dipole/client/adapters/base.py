"""The seam between the ranking client and a kind of server: what it offers, how it is asked, how its answer is read.

An adapter turns one group into that server's request and its answer into a checked `Ranking`. Deadline, circuit, size,
type and retries are the connection's and the client's, and the same for all kinds (connection.py, rank_client.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import ConfigDict, Field, JsonValue

from dipole.client.connection import (
    BoundedResponse,
    Deadline,
    EndpointConnection,
    EndpointError,
    Message,
    invalid_response,
)
from dipole.protocol.images import Pixels
from dipole.protocol.schemas import (
    MAX_CANDIDATES,
    RankedItem,
    Ranking,
    RewardInfo,
    StrictModel,
    Version,
    rank_scores,
)

MAX_TIMEOUT_S = 7 * 24 * 3600  # of one group


class RankCall(Protocol):
    """One group on its way, as the client has it. `location` and `poll_after` are of a ranking that is pending; `vae`
    is the fingerprint of the VAE whose latents its candidates are, None where they are images.
    """

    prompt: str
    metadata: Mapping[str, JsonValue] | None
    progress: float | None
    key: str
    location: str | None
    poll_after: float
    vae: str | None

    def __len__(self) -> int: ...

    def pixels(self) -> list[Pixels]:
        """Every candidate as an RGB uint8 array (H, W, 3)."""

    def is_stored_for(self, info: RewardInfo) -> bool:
        """Whether the candidates lie in memory that the endpoint reads, so that they need not be sent."""

    def request_body(self, *, multipart: bool, tells_progress: bool = False, is_stored: bool = False) -> dict[str, Any]:
        """The ranking protocol's own request, as httpx's arguments; with `progress` for an endpoint that wants it, and
        without the candidates' bytes where it finds them stored.
        """

    def base64_pngs(self) -> list[str]:
        """Every candidate as base64 of a PNG."""


class EndpointOptions(StrictModel):
    """What a kind of server needs to be told beside its URL, key and certificates."""

    model_config = ConfigDict(frozen=True)

    timeout_s: float | None = Field(
        default=None, gt=0, le=MAX_TIMEOUT_S, description="The `timeout_s` of jobs that name it and say none."
    )


class ForeignEndpointOptions(EndpointOptions):
    """Options of servers that say little of themselves."""

    revision: Version = Field(
        default="unknown", description="Revision of the model, kept with every score, as the server does not say it."
    )
    max_candidates: int = Field(
        default=MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES, description="Most images in one request."
    )


OptionsT = TypeVar("OptionsT", bound=EndpointOptions)
ForeignOptionsT = TypeVar("ForeignOptionsT", bound=ForeignEndpointOptions)


class EndpointAdapter(ABC, Generic[OptionsT]):
    """One kind of server at one address. `ready_path` answers 200 when it can be asked; `withdraws` says whether
    DELETE of a pending ranking's location means something to it, `pending_hint` what may be wrong when one never ends.
    """

    ready_path: ClassVar[str]
    withdraws: ClassVar[bool] = True
    pending_hint: ClassVar[str] = ""

    def __init__(self, connection: EndpointConnection, options: OptionsT) -> None:
        self.connection, self.options = connection, options

    @abstractmethod
    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        """Ask the server what it offers. Raises EndpointError, also when it is not what was registered."""

    @abstractmethod
    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        """(path, httpx's arguments) of the POST that asks."""

    @abstractmethod
    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking | None:
        """The checked ranking; None while it is pending, with `job.location` saying where to look."""

    def poll_ranking(self, job: RankCall, location: str, deadline: Deadline) -> Ranking | None:
        """Look once at what is pending at `location`; as `read_answer`."""
        return self.read_answer(job, *self.connection.send_request("GET", location, deadline))


class ForeignAdapter(EndpointAdapter[ForeignOptionsT]):
    """A server of somebody else's, which is asked with a POST to `score_path` and takes images as PNG."""

    ready_path = "/health"
    score_path: ClassVar[str] = "/score"
    recipe: ClassVar[str]

    def describe_server(self, name: str, model: str) -> RewardInfo:
        """What it is, as far as it says and was told at registration."""
        return RewardInfo(
            name=name,
            model=model,
            model_revision=self.options.revision,
            recipe_version=self.recipe,
            media_types=["image/png"],
            max_candidates=self.options.max_candidates,
            multipart=False,
        )

    def parse_scores(self, message: type[Message], status: int, answer: BoundedResponse) -> Message:
        """The answer of the POST to `score_path`, in its own words."""
        if status != 200:
            raise invalid_response(f"{self.connection.base_url} answered {status}, which {self.score_path} never does")
        return self.connection.parse_message(message, answer)

    def rank_floats(self, job: RankCall, model: str, scores: Sequence[float]) -> Ranking:
        """The ranking by one score for each candidate, in their order. Raises EndpointError for too few or many."""
        if len(scores) != len(job):
            raise invalid_response(
                f"{self.connection.base_url} answered {len(scores)} scores for {len(job)} candidates"
            )
        return Ranking(
            id=job.key,
            created=int(time.time()),
            model=model,
            model_revision=self.options.revision,
            recipe_version=self.recipe,
            results=[
                RankedItem(id=f"c{index}", score=score, rank=rank)
                for index, (score, rank) in enumerate(zip(scores, rank_scores(scores), strict=True))
            ],
        )


def choose_metric(metrics: Mapping[str, Any], *, chosen: str | None, reward: str, url: str) -> str:
    """Which metric of a reward is the score. More than one and none named as the reward: nothing is guessed."""
    metric = chosen or (next(iter(metrics)) if len(metrics) == 1 else reward)
    if metric not in metrics:
        offered = ", ".join(sorted(metrics)[:16]) or "none"
        message = f"{url} answered the metrics {offered}: register one as options.metric"
        raise EndpointError(message, code="invalid_response", counts_as_failure=False)
    return metric


def finite_number(value: Any) -> float | None:
    """The value as a number, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None
