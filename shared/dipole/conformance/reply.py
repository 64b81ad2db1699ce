"""One answer of the server under test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dipole.conformance.failures import Failed
from dipole.protocol import problems

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def start(self) -> str:
        return " ".join(self.text()[:200].split())

    def parsed(self, message: type[Message]) -> Message:
        if self.headers.get("content-encoding", "identity") != "identity":
            raise Failed(f"answered with Content-Encoding {self.headers['content-encoding']}, which was not asked for")
        if self.kind != "application/json":
            raise Failed(f"answered {self.kind or 'no content type'} instead of application/json")
        try:
            return message.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = problems.field_path(first["loc"]) or "body"
            raise Failed(f"not a valid {message.__name__}: {where}: {first['msg']}") from None
