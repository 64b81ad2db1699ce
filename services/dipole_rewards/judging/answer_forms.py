"""The forms that an answer may have. What does not have its form is no answer: null, never 0, never a guess.

A form is sent as a JSON schema where the endpoint enforces one, and checked here all the same, because some endpoints
take the schema and ignore it. The whole answer must be the JSON object, bare or in one code fence: an object
somewhere inside a text may as well be quoted from the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dipole_rewards.judging.chat import CallFailed

Read = TypeVar("Read")
FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
SHOWN = 80  # characters of an answer that does not parse, in its error
BEST = 100


@dataclass(frozen=True)
class Form(Generic[Read]):
    """`example` tells the judge and the reader of an error what is wanted; `check` raises ValueError."""

    name: str
    example: str
    properties: Mapping[str, Any]
    check: Callable[[str], Read]

    def response_format(self) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": dict(self.properties),
            "required": list(self.properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": self.name, "strict": True, "schema": schema}}

    def read(self, text: str) -> Read:
        """The answer's meaning, or CallFailed with `no_parse`."""
        stripped = text.strip()
        fenced = FENCE.fullmatch(stripped)
        try:
            return self.check(fenced[1] if fenced else stripped)
        except ValueError:  # pydantic's are ValueErrors
            shown = stripped[:SHOWN] + ("…" if len(stripped) > SHOWN else "")
            raise CallFailed("no_parse", f"the judge answered {shown!r}, not {self.example}") from None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Score(_Strict):
    score: int = Field(ge=0, le=BEST)


class _Verdict(_Strict):
    better: Literal["A", "B", "tie"]


class _Order(_Strict):
    ranking: list[int]


SCORE: Form[float] = Form(
    name="score",
    example='{"score": 0 to 100}',
    properties={"score": {"type": "integer", "enum": list(range(BEST + 1))}},  # bounds are less widely enforced
    check=lambda text: _Score.model_validate_json(text).score / BEST,
)
VERDICT: Form[Literal["A", "B", "tie"]] = Form(
    name="verdict",
    example='{"better": "A", "B" or "tie"}',
    properties={"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    check=lambda text: _Verdict.model_validate_json(text).better,
)


def order(count: int) -> Form[list[int]]:
    """A ranking of images 1…count, the best first, each named once."""

    def check(text: str) -> list[int]:
        ranking = _Order.model_validate_json(text).ranking
        if sorted(ranking) != list(range(1, count + 1)):
            raise ValueError("not every image once")
        return ranking

    items = {"type": "integer", "enum": list(range(1, count + 1))}
    return Form(
        name="ranking",
        example=f'{{"ranking": each of 1 to {count} once}}',
        properties={"ranking": {"type": "array", "items": items, "minItems": count, "maxItems": count}},
        check=check,
    )
