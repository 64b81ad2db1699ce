"""What a prompt asks for, as GenEval writes it, checked against what a reward can see. For `shapes` and `geneval`.

    {"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "brown"},
                                      {"class": "cat", "count": 1, "position": ["left of", 0]}],
     "exclude": [{"class": "dog", "count": 2}]}

All that is included must be there, and nothing that is excluded; a position is relative to the thing of that index.
Metadata comes with every request: what is wrong in it is told to its sender, and is never the reward's failure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, model_validator

from dipole.protocol.schemas import ItemError, Many
from dipole.protocol.validation import first_error
from dipole.tiny.world import RELATIONS


@dataclass(frozen=True)
class ObjectVocabulary:
    """What a reward can tell apart: the values that metadata may have."""

    classes: Collection[str]
    colours: Collection[str]
    max_count: int
    """The highest count of one thing."""


def _check_known(value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f"{value[:40]!r} is none of {', '.join(known)}")
    return value


def _check_relation(value: str) -> str:
    return _check_known(value, RELATIONS)


def _check_class(value: str, info: ValidationInfo) -> str:
    return _check_known(value, _vocabulary_of(info).classes)


def _check_colour(value: str, info: ValidationInfo) -> str:
    return _check_known(value, _vocabulary_of(info).colours)


def _check_count(value: int, info: ValidationInfo) -> int:
    if value > _vocabulary_of(info).max_count:
        raise ValueError(f"more than {_vocabulary_of(info).max_count} of one thing are not told apart")
    return value


def _vocabulary_of(info: ValidationInfo) -> ObjectVocabulary:
    assert isinstance(info.context, ObjectVocabulary)
    return info.context


class RequestedObject(BaseModel):
    """A thing that is asked for, or unwanted; what else GenEval says of it means nothing here."""

    kind: Annotated[str, AfterValidator(_check_class)] = Field(alias="class")
    count: Annotated[int, Field(ge=1, strict=True), AfterValidator(_check_count)] = 1
    color: Annotated[str, AfterValidator(_check_colour)] | None = None
    position: (
        tuple[Annotated[str, AfterValidator(_check_relation)], Annotated[int, Field(ge=0, strict=True)]] | None
    ) = None


class GenEvalMetadata(BaseModel):
    """What is asked for; at least one thing."""

    tag: Any = Field(default=None, exclude=True)
    """The category. Any value: it is not for a reward that ignores it to refuse one."""
    include: Many[RequestedObject] = Field(min_length=1, max_length=64)
    exclude: Many[RequestedObject] = Field(default=[], max_length=64)

    @model_validator(mode="after")
    def _check_positions(self) -> Self:
        for index, thing in enumerate(self.include):
            if thing.position is not None and thing.position[1] >= len(self.include):
                raise ValueError(f"include[{index}].position names thing {thing.position[1]} of {len(self.include)}")
        return self


def read_metadata(
    metadata: Mapping[str, Any] | None, vocabulary: ObjectVocabulary, *, reward: str
) -> GenEvalMetadata | ItemError:
    """The checked metadata, or why `reward` can judge nothing by it."""
    if not metadata or not metadata.get("include"):
        return ItemError(code="missing_metadata", message=f"{reward} needs metadata.include, as GenEval writes it")
    try:
        return GenEvalMetadata.model_validate(metadata, context=vocabulary)
    except ValidationError as error:
        return ItemError(code="bad_metadata", message=first_error(error, "metadata").sentence[:200])
