"""From an OpenAPI document to the page of the API reference: all of it, escaped, with links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from dipole.web.api_reference.content import render_content
from dipole.web.api_reference.routes import CONTENT_PATH, PAGE_PATH, PAGE_PATHS, add_api_reference

HOSTILE = "<script>alert(1)</script> & `a < b`"


class Part(BaseModel):
    """A part of the whole."""

    size: float = Field(default=0.5, gt=0, le=8, description="Size of the part.")


class Whole(BaseModel):
    parts: list[Part] = Field(max_length=1, description=HOSTILE)
    by_name: dict[str, int] | None = Field(default=None, description="Counts by name.")


def make_app() -> FastAPI:
    app = FastAPI(title="A & B", docs_url=None, redoc_url=None)

    @app.post("/wholes/{name}", tags=["wholes"], openapi_extra={"requestBody": {"content": {}}})
    def make_whole(name: str, body: Whole, deep: Annotated[bool, Query(description="How.")] = False) -> Part:
        """First paragraph.

        Second paragraph, of `code`.
        """
        return body.parts[0]

    return app


@pytest.fixture
def content() -> str:
    return render_content(make_app().openapi(), example_url="http://localhost:1", key_setting="A_KEY")


def test_everything_of_the_document_is_in_it(content: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", content))
    for each in (
        "POST /wholes/{name}", "First paragraph. Second paragraph, of code .", "name required path string",
        "deep query boolean How. default false", "Size of the part. default 0.5; more than 0; at most 8",
        "list of Part", "at most 1 item ", "object of integer or null", "Counts by name.", "422", "A_KEY",
    ):  # fmt: skip
        assert each in text, each


def test_what_a_description_holds_is_text(content: str) -> None:
    assert "<script" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; <code>a &lt; b</code>" in content
    assert re.findall(r"<style|\sstyle=|\son\w+=", content) == []


def test_every_link_leads_to_an_anchor(content: str) -> None:
    anchors = set(re.findall(r' id="([^"]+)"', content))
    links = re.findall(r'href="#([^"]+)"', content)
    assert len(links) > 6
    assert set(links) <= anchors


@pytest.fixture
def app() -> Iterator[Any]:
    app = make_app()
    add_api_reference(app, key_setting="A_KEY", is_keyed=False, example_url="http://localhost:1")
    return app


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_pages_are_served_with_a_policy_and_are_not_in_the_document(app: Any) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for path in (*PAGE_PATHS, CONTENT_PATH):
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"].startswith("default-src 'self';")
            assert "unsafe" not in answer.headers["content-security-policy"]
            again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(answer.content))
            assert (await client.post(path)).status_code == 405
        page = (await client.get(PAGE_PATH)).text
        assert "A &amp; B" in page
        assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page) == []
        for each in re.findall(r'(?:src|href)="([^"#]+)"', page):
            assert (await client.get(str(httpx.URL("http://127.0.0.1/docs").join(each)))).status_code == 200, each
    assert list(app.openapi()["paths"]) == ["/wholes/{name}"]
