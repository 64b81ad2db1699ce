"""The seam between the ranking client and a kind of server: what it offers, how it is asked, how its answer is read.

An adapter turns one group into that server's request and its answer into a checked `Ranking`. Deadline, circuit, size,
type and retries are the connection's and the same for all kinds (`exchange`, `client`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from dipole.client.connection import Answer, Connection, Deadline, Message, invalid
from dipole.protocol.schemas import MAX_CANDIDATES, Ranking, RewardInfo, Version


class Job(Protocol):
    """One group on its way, as the client has it. `location` and `poll_after` are of a ranking that is pending."""

    prompt: str
    metadata: Mapping[str, JsonValue] | None
    key: str
    location: str | None
    poll_after: float

    def __len__(self) -> int: ...

    def body(self, *, multipart: bool) -> dict[str, Any]:
        """The ranking protocol's own request, as httpx's arguments."""

    def pngs(self) -> list[str]:
        """Every candidate as base64 of a PNG."""


class Options(BaseModel):
    """What a kind of server needs to be told beside its URL, key and certificates."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ForeignOptions(Options):
    """Options of servers that say little of themselves."""

    revision: Version = Field(default="unknown", description="Of the model, kept with every score: it does not say.")
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES, description="Images in one request.")


OptionsT = TypeVar("OptionsT", bound=Options)
ForeignOptionsT = TypeVar("ForeignOptionsT", bound=ForeignOptions)


class Adapter(ABC, Generic[OptionsT]):
    """One kind of server at one address. `ready_path` answers 200 when it can be asked."""

    ready_path: ClassVar[str]

    def __init__(self, connection: Connection, options: OptionsT) -> None:
        self.connection, self.options = connection, options

    @abstractmethod
    def info(self, deadline: Deadline) -> RewardInfo:
        """Ask the server what it offers. Raises EndpointError, also when it is not what was registered."""

    @abstractmethod
    def request(self, job: Job, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        """(path, httpx's arguments) of the POST that asks."""

    @abstractmethod
    def read(self, job: Job, status: int, answer: Answer) -> Ranking | None:
        """The checked ranking; None while it is pending, with `job.location` saying where to look."""


class ForeignAdapter(Adapter[ForeignOptionsT]):
    """A server of somebody else's with `/score`, which answers at once and takes images as PNG."""

    ready_path = "/health"
    recipe: ClassVar[str]

    def described(self, name: str, model: str) -> RewardInfo:
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

    def scored(self, message: type[Message], status: int, answer: Answer) -> Message:
        """The answer of `POST /score`, in its own words."""
        if status != 200:
            raise invalid(f"{self.connection.base_url} answered {status}, which /score never does")
        return self.connection.parsed(message, answer)
