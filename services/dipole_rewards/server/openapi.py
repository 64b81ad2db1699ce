"""The OpenAPI documents of the ranking protocol: every route's answers, and examples that a test validates."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from dipole.protocol import problems
from dipole.protocol.images import encode_png
from dipole.protocol.schemas import FieldError, PendingRanking, Ranking, RankRequest, RewardInfo
from dipole.web.openapi import document_problems

TAGS = [
    {"name": "ranking", "description": "The ranking protocol: candidates of a prompt in, scores and an order out."},
    {"name": "weights", "description": "For a reward that shares a GPU with the trainer."},
    {"name": "health", "description": "For orchestrators and Prometheus."},
]
IDEMPOTENCY_KEY_DESCRIPTION = "A repeat with the same key and body gets the first answer; with another body, 422."
PREFER_DESCRIPTION = "`respond-async` asks for 202 and a ranking to poll."

_EXAMPLE_IMAGE = base64.b64encode(encode_png(np.full((8, 8, 3), (200, 30, 30), np.uint8))).decode()

REQUEST_EXAMPLE: dict[str, Any] = {
    "prompt": "a photo of a red square",
    "candidates": [
        {"id": "a", "image": {"media_type": "image/png", "data": _EXAMPLE_IMAGE}},
        {"id": "b", "image": {"media_type": "image/png", "data": _EXAMPLE_IMAGE}},
    ],
    "metadata": {"tag": "single_object", "include": [{"class": "square", "count": 1, "color": "red"}]},
}
MULTIPART_EXAMPLE: dict[str, Any] = {
    "request": '{"prompt":"a photo of a red square","candidates":[{"id":"a","image":{"media_type":"image/png"}}]}',
    "a": "(the PNG's bytes, with a filename)",
}
RANKING_EXAMPLE: dict[str, Any] = {
    "id": "rank_0b5e7f2c",
    "object": "ranking",
    "created": 1795405200,
    "model": "shapes",
    "model_revision": "1",
    "recipe_version": "1",
    "status": "completed",
    "results": [
        {"id": "a", "score": 0.75, "rank": 1, "tier": None, "sub_scores": {"strict": 0.0}, "error": None},
        {"id": "b", "score": None, "rank": None, "tier": None, "sub_scores": None,
         "error": {"code": "no_score", "message": "the reward gave no score and no reason"}},
    ],
    "usage": {"images": 2, "seconds": 0.004},
}  # fmt: skip
PENDING_EXAMPLE: dict[str, Any] = {"id": "rank_0b5e7f2c", "object": "ranking", "status": "pending", "error": None}
INFO_EXAMPLE: dict[str, Any] = {
    "name": "shapes", "model": "shapes", "model_revision": "1", "recipe_version": "1", "protocol_version": "1",
    "media_types": ["image/png", "image/webp", "image/jpeg", "application/x-npy"], "max_candidates": 64,
    "max_pixels": 16777216, "calibrated": True, "multipart": True,
}  # fmt: skip
PROBLEM_EXAMPLE = problems.make_problem(
    422,
    "candidates[0].image.data is not valid base64: Incorrect padding",
    slug="invalid-input",
    errors=[FieldError(field="candidates[0].image.data", message="is not valid base64: Incorrect padding")],
)


def _json_content(example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"example": example}}


_PENDING_HEADERS = {
    "Location": {"description": "The ranking, relative to this URL.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before looking.", "schema": {"type": "integer"}},
}
_PENDING = {
    "model": PendingRanking,
    "description": "Accepted: look at Location after Retry-After seconds.",
    "content": _json_content(PENDING_EXAMPLE),
    "headers": _PENDING_HEADERS,
}
_RANKED = {"model": Ranking, "description": "The ranking, in request order.", "content": _json_content(RANKING_EXAMPLE)}
_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid key."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "A bound was exceeded: bytes, candidates or pixels."},
    415: {"description": "A media type that is not accepted."},
    422: {"description": "A field is wrong; `errors` names each."},
    500: {"description": "The reward failed."},
    503: {"description": "Loading or overloaded; Retry-After says when to come back."},
}


def _error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: dict(_ERRORS.get(status, {"description": "No such ranking."})) for status in statuses}


_MULTIPART_SCHEMA = {
    "type": "object",
    "required": ["request"],
    "properties": {"request": {"type": "string", "description": "The RankRequest as JSON, its images without `data`."}},
    "additionalProperties": {"type": "string", "format": "binary", "description": "One part a candidate, named by id."},
}
RANK_ROUTE: dict[str, Any] = {
    "summary": "Order candidates for one prompt, best first",
    "description": "The answer has a score for each candidate, where the endpoint has scores, and its rank. What takes "
    "long is answered with 202, to be polled or awaited by callback.",
    "tags": ["ranking"],
    "responses": {200: _RANKED, 202: _PENDING, **_error_responses(401, 408, 413, 415, 422, 500, 503)},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/RankRequest"},
                    "example": REQUEST_EXAMPLE,
                },
                "multipart/form-data": {"schema": _MULTIPART_SCHEMA, "example": MULTIPART_EXAMPLE},
            },
        }
    },
}
_MISSING = {404: {"description": "No such ranking."}}
GET_RANKING_ROUTE: dict[str, Any] = {
    "summary": "A ranking that was answered with 202",
    "description": "The answer is the ranking once it has finished, and says until then when to ask again.",
    "tags": ["ranking"],
    "responses": {
        200: {**_RANKED, "model": Ranking | PendingRanking, "description": "Completed, failed or cancelled."},
        202: {**_PENDING, "headers": {"Retry-After": _PENDING_HEADERS["Retry-After"]}},
        **_MISSING,
        **_error_responses(401, 422),
    },
}
DELETE_RANKING_ROUTE: dict[str, Any] = {
    "summary": "Cancel a pending ranking",
    "description": "Nobody works on the ranking any more; one that has finished stays as it is.",
    "tags": ["ranking"],
    "responses": {
        200: {"description": "It is cancelled.", "content": _json_content({**PENDING_EXAMPLE, "status": "cancelled"})},
        409: {"description": "It has finished."},
        **_MISSING,
        **_error_responses(401, 422),
    },
}
INFO_ROUTE: dict[str, Any] = {
    "summary": "What this endpoint is and accepts",
    "description": "The answer names the model and its revision, and the bounds of what may be sent.",
    "tags": ["ranking"],
    "response_model": RewardInfo,
    "response_model_exclude_none": True,  # a trainer that knows nothing of latents refuses the field
    "responses": {
        200: {"description": "The endpoint.", "content": _json_content(INFO_EXAMPLE)},
        **_error_responses(401),
    },
}
_WEIGHTS_EXAMPLE: dict[str, Any] = {
    "object": "reward.weights", "status": "asleep", "moved_bytes": 1710540580, "seconds": 0.31,
}  # fmt: skip
_WEIGHTS_ANSWERS = {
    200: {"description": "Where they are now.", "content": _json_content(_WEIGHTS_EXAMPLE)},
    **_error_responses(401, 503),
}
SLEEP_ROUTE: dict[str, Any] = {
    "summary": "Move the weights to the memory of the host",
    "description": "The device is free for others once it answers, after the forward that runs. Whatever is to be "
    "ranked next wakes them.",
    "tags": ["weights"],
    "responses": _WEIGHTS_ANSWERS,
}
WAKE_ROUTE: dict[str, Any] = {
    "summary": "Move the weights back to their device",
    "description": "Ranking does so by itself; this takes the wait away from the next request.",
    "tags": ["weights"],
    "responses": _WEIGHTS_ANSWERS,
}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` complete: the request's schema, and problems as what they are."""

    def build_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                routes=app.routes,
                tags=app.openapi_tags or TAGS,
                description="Dipole's ranking protocol, version 1.",
            )
            whole = RankRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update(whole.pop("$defs"))
            document["components"]["schemas"]["RankRequest"] = whole
            app.openapi_schema = document_problems(document, PROBLEM_EXAMPLE)
        return app.openapi_schema

    app.openapi = build_document  # type: ignore[method-assign]
