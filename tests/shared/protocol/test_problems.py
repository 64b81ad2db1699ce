"""What a caller reads of a body that is no JSON object, most often because its Content-Type was forgotten."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from dipole.protocol.schemas import Ranking, RankRequest, RewardInfo
from dipole.web import reward_server

INFO = RewardInfo(name="x", model="x", model_revision="1", recipe_version="1", media_types=["image/png"])
BODY = b'{"prompt": "p", "candidates": []}'


def post(content: bytes, content_type: str | None) -> tuple[int, str]:
    """Status and sentence of a reward server of one's own."""
    app = FastAPI()
    reward_server.prepare_app(app, INFO)

    @app.post("/v1/rank")
    def rank(request: RankRequest) -> Ranking:
        return reward_server.make_ranking(request, INFO, [])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"content-type": content_type} if content_type else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/rank", content=content, headers=headers)

    answer = asyncio.run(ask())
    return answer.status_code, answer.json()["detail"]


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_forgotten_content_type_is_told(content_type: str | None) -> None:
    """In HTTP's words: which header to send."""
    status, detail = post(BODY, content_type)
    assert (status, detail) == (422, "body: must be a JSON object, sent with Content-Type: application/json")


@pytest.mark.parametrize("content", [b"[1]", b"null", b'"x"', b""])
def test_what_is_no_object_is_told(content: bytes) -> None:
    """A list, null, text, nothing."""
    assert post(content, "application/json")[1].startswith("body: must be a JSON object")


def test_what_is_no_json_is_told_at_the_body() -> None:
    """And not at a field called [0], which is where its text broke off."""
    assert post(b"prompt=p", "application/json")[1] == "body: is not JSON: Expecting value"


def test_a_field_is_told_as_before() -> None:
    """Its name and what it must be."""
    assert post(b'{"prompt": "p", "candidates": [1]}', "application/json")[1] == "candidates[0]: must be a JSON object"
    assert post(b'{"candidates": []}', "application/json")[1] == "prompt: Field required"
