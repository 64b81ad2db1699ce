"""The forms that an answer may have. What does not have its form is no answer: null, never 0, never a guess.

A form is sent as a JSON schema where the endpoint enforces one, and checked here all the same, because some endpoints
take the schema and ignore it. The whole answer must be the JSON object, bare or in one code fence: an object
somewhere inside a text could be text quoted from the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dipole_rewards.judging.chat import CallFailed

AnswerT = TypeVar("AnswerT")
CODE_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
MAX_QUOTED_CHARS = 80  # characters of an answer that does not parse, in its error
MAX_SCORE = 100


@dataclass(frozen=True)
class AnswerForm(Generic[AnswerT]):
    """`example` tells the judge and the reader of an error what is wanted; `check` raises ValueError."""

    name: str
    example: str
    properties: Mapping[str, Any]
    parse_json: Callable[[str], AnswerT]

    def response_format(self) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": dict(self.properties),
            "required": list(self.properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": self.name, "strict": True, "schema": schema}}

    def parse(self, text: str) -> AnswerT:
        """The answer's meaning, or CallFailed with `no_parse`."""
        stripped = text.strip()
        fenced = CODE_FENCE.fullmatch(stripped)
        try:
            return self.parse_json(fenced[1] if fenced else stripped)
        except ValueError:
            # pydantic's are ValueErrors
            shown = stripped[:MAX_QUOTED_CHARS] + ("…" if len(stripped) > MAX_QUOTED_CHARS else "")
            raise CallFailed("no_parse", f"the judge answered {shown!r}, not {self.example}") from None


class _JudgeMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _JudgeScore(_JudgeMessage):
    score: int = Field(ge=0, le=MAX_SCORE)


class _JudgeVerdict(_JudgeMessage):
    better: Literal["A", "B", "tie"]


class _JudgeOrder(_JudgeMessage):
    ranking: list[int]


SCORE: AnswerForm[float] = AnswerForm(
    name="score",
    example='{"score": 0 to 100}',
    properties={"score": {"type": "integer", "enum": list(range(MAX_SCORE + 1))}},  # bounds are less widely enforced
    parse_json=lambda text: _JudgeScore.model_validate_json(text).score / MAX_SCORE,
)
VERDICT: AnswerForm[Literal["A", "B", "tie"]] = AnswerForm(
    name="verdict",
    example='{"better": "A", "B" or "tie"}',
    properties={"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    parse_json=lambda text: _JudgeVerdict.model_validate_json(text).better,
)


def order_form(count: int) -> AnswerForm[list[int]]:
    """A ranking of images 1…count, the best first, each named once."""

    def parse_order(text: str) -> list[int]:
        ranking = _JudgeOrder.model_validate_json(text).ranking
        if sorted(ranking) != list(range(1, count + 1)):
            raise ValueError("not every image once")
        return ranking

    items = {"type": "integer", "enum": list(range(1, count + 1))}
    return AnswerForm(
        name="ranking",
        example=f'{{"ranking": each of 1 to {count} once}}',
        properties={"ranking": {"type": "array", "items": items, "minItems": count, "maxItems": count}},
        parse_json=parse_order,
    )
