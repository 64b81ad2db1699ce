"""OpenAPI documents that say which errors a route answers with."""

from __future__ import annotations

from typing import Any

from dipole.protocol.problems import PROBLEM_JSON
from dipole.protocol.schemas import Problem

# what frameworks say of what nobody has described
FRAMEWORKS_WORDS = {
    "Successful Response": "The request was carried out.",
    "Validation Error": "A field is wrong; `errors` names each.",
    "Service Unavailable": "It cannot be answered now; `detail` says what is missing.",
}
UNDESCRIBED_SCHEMAS = {"JsonValue": "Any JSON value.", "Body_": "The parts of the form."}


def document_problems(openapi: dict[str, Any], example: Problem | None = None) -> dict[str, Any]:
    """An OpenAPI document whose 4xx and 5xx answers are application/problem+json with the Problem schema."""
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    whole = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(whole.pop("$defs", {}))
    schemas["Problem"] = whole
    for name, schema in schemas.items():
        for beginning, description in UNDESCRIBED_SCHEMAS.items():
            if name.startswith(beginning):
                schema.setdefault("description", description)
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if example is not None:
        content["example"] = example.model_dump(exclude_none=True)
    for path in openapi.get("paths", {}).values():
        for operation in path.values():
            for status, response in operation.get("responses", {}).items():
                said = response.get("description")
                response["description"] = FRAMEWORKS_WORDS.get(said, said)
                if str(status)[:1] in "45":
                    response["content"] = {PROBLEM_JSON: content}
    return openapi
