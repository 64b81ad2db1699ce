"""One answer of the server under test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dipole.conformance.failures import CheckFailed
from dipole.protocol.validation import first_error

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class EndpointReply:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def excerpt(self) -> str:
        return " ".join(self.text()[:200].split())

    def parse(self, message: type[Message]) -> Message:
        if self.headers.get("content-encoding", "identity") != "identity":
            raise CheckFailed(
                f"answered with Content-Encoding {self.headers['content-encoding']}, which was not asked for"
            )
        if self.media_type != "application/json":
            raise CheckFailed(f"answered {self.media_type or 'no content type'} instead of application/json")
        try:
            return message.model_validate_json(self.body)
        except ValidationError as error:
            first = first_error(error)
            raise CheckFailed(f"not a valid {message.__name__}: {first.path or 'body'}: {first.message}") from None
