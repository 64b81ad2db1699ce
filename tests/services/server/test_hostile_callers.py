"""What a hostile or careless caller sends: each gets a clear 4xx that names the field, and the server lives on."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from dipole.conformance.inputs import oversized_png
from dipole.protocol import images
from dipole.protocol.schemas import Problem

pytestmark = pytest.mark.anyio

GOOD = images.encode_png(np.full((4, 4, 3), 99, np.uint8))


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def body(**second: Any) -> dict[str, Any]:
    """Two candidates; the second one's image is what the test says."""
    image = {"media_type": "image/png", "data": coded(GOOD)}
    return {"prompt": "p", "candidates": [{"id": "a", "image": image}, {"id": "b", "image": {**image, **second}}]}


def saved(array: Any, **options: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return coded(buffer.getvalue())


IMAGE = "candidates[1].image"
NPY = images.NPY
CASES: dict[str, tuple[Any, int, str]] = {
    "corrupt image": (body(data=coded(b"\x89PNG\r\n\x1a\nnothing")), 422, IMAGE),
    "truncated image": (body(data=coded(images.encode_png(np.zeros((64, 64, 3), np.uint8))[:-30])), 422, IMAGE),
    "100 megapixels": (body(data=coded(oversized_png())), 413, IMAGE),
    "a gigapixel": (body(data=coded(oversized_png(40_000, 40_000))), 413, IMAGE),
    "wrong base64": (body(data="***"), 422, IMAGE + ".data"),
    "base64 with newlines": (body(data=coded(GOOD)[:8] + "\n" + coded(GOOD)[8:]), 422, IMAGE + ".data"),
    "a URL": (body(data="https://example.org/x.png"), 422, IMAGE + ".data"),
    "a data URI": (body(data="data:image/png;base64," + coded(GOOD)), 422, IMAGE + ".data"),
    "no data": (body(data=None), 422, IMAGE + ".data"),
    "gif": (body(media_type="image/gif"), 422, IMAGE + ".media_type"),
    "png called jpeg": (body(media_type="image/jpeg"), 422, IMAGE),
    "pickle": (body(media_type=NPY, data=saved(np.array([{}], object), allow_pickle=True)), 422, IMAGE),
    "npz": (body(media_type=NPY, data=coded(b"PK\x03\x04" + b"\0" * 40)), 422, IMAGE),
    "npy of floats": (body(media_type=NPY, data=saved(np.zeros((2, 2, 3)))), 422, IMAGE),
    "unknown field": ({**body(), "temperature": 1}, 422, "temperature"),
    "unknown field inside": (body(url="http://x"), 422, IMAGE + ".url"),
    "prompt too long": ({**body(), "prompt": "x" * 10_001}, 422, "prompt"),
    "prompt as number": ({**body(), "prompt": 7}, 422, "prompt"),
    "no candidates": ({**body(), "candidates": []}, 422, "candidates"),
    "an id with a slash": (
        {"prompt": "", "candidates": [{**body()["candidates"][0], "id": "../a"}]},
        422,
        "candidates[0].id",
    ),
    "10,000 candidates": (
        {
            "prompt": "",
            "candidates": [{"id": f"c{n}", "image": body()["candidates"][0]["image"]} for n in range(10_000)],
        },
        413,
        "candidates",
    ),
    "10,000 wrong candidates": ({"prompt": "", "candidates": [{"id": 1}] * 10_000}, 422, "candidates[0].id"),
}


@pytest.mark.parametrize(("request_body", "status", "field"), CASES.values(), ids=CASES.keys())
async def test_each_bad_request_names_its_field(serve: Any, request_body: Any, status: int, field: str) -> None:
    """A problem document with the status and the field, and at most a screenful of errors."""
    async with serve() as client:
        answer = await client.post("/v1/rank", json=request_body)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(answer.content)
        assert problem.status == status
        assert field in [error.field for error in problem.errors]
        assert len(answer.content) < 8000
        assert (await client.post("/v1/rank", json=body())).status_code == 200


async def test_a_million_wrong_candidates_are_one_error(serve: Any) -> None:
    """Two bytes a candidate must not become a kilobyte of errors each: the first wrong one ends the reading."""
    content = b'{"prompt": "", "candidates": [' + b",".join([b"1"] * 1_000_000) + b"]}"
    async with serve() as client:
        answer = await client.post("/v1/rank", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["candidates[0]"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"null", "application/json", 422),
        (b"", "application/json", 422),
        (b"<rank/>", "application/xml", 415),
        (b"x", "", 415),
        (b"no parts", "multipart/form-data; boundary=x", 422),
        (b"no boundary", "multipart/form-data", 422),
    ],
)
async def test_what_is_no_request_is_refused(serve: Any, content: bytes, kind: str, status: int) -> None:
    """Broken, deep, empty and foreign bodies."""
    async with serve() as client:
        answer = await client.post("/v1/rank", content=content, headers={"content-type": kind})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


REQUEST = json.dumps({"prompt": "p", "candidates": [{"id": "a", "image": {"media_type": "image/png"}}]})


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([("request", (None, REQUEST))], "candidates[0].image"),
        ([("a", ("a", GOOD))], "request"),
        ([("request", (None, REQUEST)), ("a", ("a", GOOD)), ("z", ("z", GOOD))], "z"),
        ([("request", (None, REQUEST)), ("a", ("a", GOOD)), ("a", ("a", GOOD))], "a"),
        ([("request", (None, REQUEST)), ("a", (None, GOOD.hex()))], "candidates[0].image"),
        ([("request", (None, json.dumps(body()))), ("a", ("a", GOOD)), ("b", ("b", GOOD))], "candidates[0].image.data"),
        ([("request", (None, "{")), ("a", ("a", GOOD))], "body"),
    ],
    ids=["missing", "no request", "unknown", "doubled", "as text", "data twice", "bad json"],
)
async def test_each_bad_multipart_names_its_part(serve: Any, parts: Any, field: str) -> None:
    """Missing, unknown, doubled and mistyped parts."""
    async with serve() as client:
        answer = await client.post("/v1/rank", files=parts)
        assert answer.status_code == 422
        assert field in [error["field"] for error in answer.json()["errors"]]


async def test_ten_thousand_parts_are_refused(serve: Any) -> None:
    """The multipart parser stops at max_candidates parts."""
    async with serve(reward_max_candidates=4) as client:
        parts = [("request", (None, REQUEST)), *((f"c{n}", (f"c{n}", b"x")) for n in range(10_000))]
        answer = await client.post("/v1/rank", files=parts)
        assert answer.status_code == 413
        assert answer.json()["errors"][0]["field"] == "candidates"


async def test_many_large_images_are_refused_together(serve: Any) -> None:
    """Each within its bound, together past theirs: refused before any is decoded."""
    png = coded(oversized_png(1000, 1000))
    many = [{"id": f"c{n}", "image": {"media_type": "image/png", "data": png}} for n in range(5)]
    async with serve(reward_max_total_pixels=4_500_000) as client:
        answer = await client.post("/v1/rank", json={"prompt": "", "candidates": many})
        assert answer.status_code == 413
        assert "together" in answer.json()["detail"]


async def chunks(count: int, size: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size
        await asyncio.sleep(pause)


async def test_a_large_body_is_refused_with_and_without_its_length(serve: Any) -> None:
    """413 by Content-Length at once, and while streaming when there is none."""
    async with serve(reward_max_body_bytes=10_000) as client:
        head = {"content-type": "application/json"}
        declared = await client.post("/v1/rank", content=b" " * 10_001, headers=head)
        streamed = await client.post("/v1/rank", content=chunks(50, 1000), headers=head)
        lying = await client.post("/v1/rank", content=chunks(50, 1000), headers={**head, "content-length": "5"})
        for answer in (declared, streamed, lying):
            assert answer.status_code == 413
            assert "10000 bytes" in answer.json()["detail"]


async def test_a_slow_body_is_refused(serve: Any) -> None:
    """A body that trickles past reward_body_timeout_s gets 408, and others are served meanwhile."""
    async with serve(reward_body_timeout_s=0.3) as client:
        head = {"content-type": "application/json"}
        slow = asyncio.create_task(client.post("/v1/rank", content=chunks(100, 1, 0.05), headers=head))
        assert (await client.post("/v1/rank", json=body())).status_code == 200
        assert (await slow).status_code == 408


async def test_unknown_paths_and_methods_are_problems(serve: Any) -> None:
    """404 and 405 have the same shape as every other error, and 405 says what is allowed."""
    async with serve() as client:
        for method, path, status in (
            ("GET", "/nope", 404),
            ("GET", "/v1/rank", 405),
            ("DELETE", "/v1/rankings/x", 404),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == status
            assert Problem.model_validate_json(answer.content).status == status
        assert (await client.get("/v1/rank")).headers["allow"] == "POST"


async def test_request_ids_are_kept_when_they_are_sane(serve: Any) -> None:
    """A sane X-Request-ID comes back; one made for log injection is replaced."""
    async with serve() as client:
        assert (await client.get("/livez", headers={"X-Request-ID": "abc-1"})).headers["x-request-id"] == "abc-1"
        for wrong in (b"a b", b"x" * 200, b"\xff"):
            kept = (await client.get("/livez", headers=[(b"X-Request-ID", wrong)])).headers["x-request-id"]
            assert kept.encode() != wrong
