"""The OpenAPI documents say in a sentence what every operation, parameter, answer, schema and field of REST is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def documents(reference: ModuleType) -> dict[str, dict[str, Any]]:
    """By the name of the app that serves it."""
    return {name: app.openapi() for name, app in reference.apps()}


def is_sentence(text: str | None) -> bool:
    """It begins as one, ends as one, and has the words for one."""
    return text is not None and re.fullmatch(r"[^a-z\s].*[.!?]\)?", text.strip(), re.DOTALL) is not None and " " in text


def descriptions(document: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(what it is of, description) of everything that a caller may ask about."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            yield where, operation.get("description")
            for each in operation.get("parameters", ()):
                yield f"{where}: {each['name']}", each.get("description") or each["schema"].get("description")
            for media_type, each in operation.get("requestBody", {}).get("content", {}).items():
                for name, field in each["schema"].get("properties", {}).items():
                    yield f"{where}: {name} of {media_type}", field.get("description")
            for status, each in operation["responses"].items():
                yield f"{where}: {status}", each.get("description") or None
    for name, schema in document["components"]["schemas"].items():
        yield name, schema.get("description")
        for field, each in schema.get("properties", {}).items():
            yield f"{name}.{field}", each.get("description")


def test_everything_is_described_by_a_sentence(documents: dict[str, dict[str, Any]]) -> None:
    """Of two words at least: `id` is not described by `Id.`."""
    found = [(app, *each) for app, document in documents.items() for each in descriptions(document)]
    assert len(found) > 900
    assert [each for each in found if not is_sentence(each[2])] == []


def test_operations_are_in_sections_that_are_explained(documents: dict[str, dict[str, Any]]) -> None:
    """Each has one tag, a summary of its own, and an id that a link may name."""
    for app, document in documents.items():
        operations = [each for operations in document["paths"].values() for each in operations.values()]
        explained = {tag["name"] for tag in document.get("tags", ()) if is_sentence(tag["description"])}
        assert [each for each in operations if len(each["tags"]) != 1 or not each["summary"]] == [], app
        assert {each["tags"][0] for each in operations} <= explained, app
        assert len({each["operationId"] for each in operations}) == len(operations), app
