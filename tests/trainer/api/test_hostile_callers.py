"""What hostile callers do to a trainer API as users start it, over sockets: each is bounded, and others are served."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from ...processes import exchange
from ..conftest import Running

JOBS = "/v1/fine_tuning/jobs"
MAX_STREAMS = 3


@pytest.fixture(scope="module")
def server(
    api_server: Callable[..., contextlib.AbstractContextManager[Running]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with api_server(tmp_path_factory.mktemp("api"), API_MAX_STREAMS=str(MAX_STREAMS)) as running:
        ask(running, "POST", "/v1/rewards", json={"name": "shapes", "url": "http://127.0.0.1:9"})
        yield running


def ask(server: Running, method: str, path: str, **request: Any) -> httpx.Response:
    return httpx.request(method, server.url + path, trust_env=False, timeout=60, **request)


def job_request(**more: Any) -> dict[str, Any]:
    return {
        "model": "tiny-turbo",
        "prompts": [{"prompt": "a"}],
        "rewards": [{"name": "shapes"}],
        "allow_unready": True,
        **more,
    }


def test_a_head_without_end_is_refused(server: Running) -> None:
    """400 past its bound, whatever one connection sends, and others are answered."""
    assert exchange(server.url, b"GET / HTTP/1.1\r\nx: ", *[b"a" * 65536] * 16)[:12] in (b"HTTP/1.1 400", b"")
    assert ask(server, "GET", "/readyz").status_code == 200


def test_event_streams_are_bounded_in_number(server: Running) -> None:
    """Past the bound 503, with a time to come back; requests are answered meanwhile; a stream that ends makes room."""
    job = ask(server, "POST", JOBS, json=job_request()).json()["id"]
    url = f"{server.url}{JOBS}/{job}/stream"
    with httpx.Client(trust_env=False, timeout=60) as client:
        with contextlib.ExitStack() as streams:
            for _ in range(MAX_STREAMS):
                assert streams.enter_context(client.stream("GET", url)).status_code == 200
            refused = client.get(url)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            assert "DIPOLE_API_MAX_STREAMS" in refused.json()["detail"]
            assert client.get(f"{server.url}/readyz").status_code == 200
        # the server notices a hung-up caller by itself, in its time
        for _ in range(200):
            with client.stream("GET", url) as again:
                if again.status_code == 200:
                    break
            time.sleep(0.05)
        assert again.status_code == 200


UNKNOWN = {f"{n:x}": 1 for n in range(200_000)}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (UNKNOWN, "body"),
        (job_request(prompts=[UNKNOWN]), "prompts[0]"),
        (job_request(optimizer=UNKNOWN), "optimizer"),
        (job_request(metadata=UNKNOWN), "metadata"),
        (job_request(metadata={f"{n}": n for n in range(200_000)}), "metadata"),
        (job_request(rewards=[{"name": "x", "url": "http://127.0.0.1", "options": UNKNOWN}]), "rewards[0]"),
    ],
    ids=["top", "prompt", "optimizer", "notes", "wrong notes", "options"],
)
def test_faults_in_json_are_counted_and_not_collected(server: Running, body: Any, field: str) -> None:
    """Two hundred thousand of them, 200 MB as errors, are one error, and the server stays small."""
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    answer = ask(server, "POST", JOBS, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert [error["field"].startswith(field) for error in answer.json()["errors"]] == [True]
    assert process.memory_info().rss - before < 120 * 2**20


def test_a_job_of_many_prompts_is_taken(server: Running) -> None:
    """A large body is bounded by its bytes: fifty thousand prompts are no fault."""
    made = ask(server, "POST", JOBS, json=job_request(prompts=[{"prompt": str(n)} for n in range(50_000)]))
    assert made.status_code == 200
    assert made.json()["prompt_count"] == 50_000


def test_a_body_that_is_not_json_is_told_so(server: Running) -> None:
    """A forgotten content type is named, and what would be right."""
    answer = ask(server, "POST", JOBS, content=json.dumps(job_request()))
    assert answer.status_code == 415
    assert answer.json()["detail"] == "Content-Type must be application/json, not absent"
    assert answer.json()["errors"][0]["field"] == "Content-Type"


def test_a_form_of_many_files_is_refused(server: Running) -> None:
    """An upload is one file: each more would lie in memory."""
    files = [("file", (f"{n}", b"x")) for n in range(50)]
    answer = ask(server, "POST", "/v1/files", files=files, data={"purpose": "fine-tune"})
    assert answer.status_code == 400
    assert "Too many files" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/v1/files"])
def test_web_pages_are_refused_everywhere(server: Running, path: str) -> None:
    """DNS rebinding would read numbers and documents as well."""
    assert ask(server, "GET", path, headers={"host": "evil.example"}).status_code == 403
    assert ask(server, "GET", path, headers={"origin": "https://evil.example"}).status_code == 403
