"""Several API processes over the same stores: whichever is asked, it is one platform."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

JOBS = "/v1/fine_tuning/jobs"
REWARD = {"name": "shapes", "url": "http://127.0.0.1:9"}


def test_what_one_is_told_another_knows(api_server: Callable[..., AbstractContextManager[Any]], tmp_path: Path) -> None:
    """A file of the one is a job's of the other; a stream that is cut off at the one goes on at the other."""
    with api_server(tmp_path) as one, api_server(tmp_path) as other:
        sent = {"file": ("p.jsonl", b'{"prompt": "a red square"}\n')}
        file = httpx.post(f"{one.url}/v1/files", files=sent, data={"purpose": "fine-tune"}).json()["id"]
        asked = {"training_file": file, "rewards": [REWARD], "steps": 4, "allow_unready": True}
        job = httpx.post(f"{other.url}{JOBS}", json=asked, timeout=30).json()["id"]
        with httpx.stream("GET", f"{one.url}{JOBS}/{job}/stream", timeout=30) as stream:
            seen = next(line for line in stream.iter_lines() if line.startswith("id:")).removeprefix("id:").strip()
        httpx.post(f"{one.url}{JOBS}/{job}/cancel").raise_for_status()
        with httpx.stream(
            "GET", f"{other.url}{JOBS}/{job}/stream", headers={"last-event-id": seen}, timeout=30
        ) as stream:
            later = [line.removeprefix("id:").strip() for line in stream.iter_lines() if line.startswith("id:")]
        assert seen not in later
        assert all(int(number) > int(seen) for number in later)
        assert httpx.get(f"{other.url}{JOBS}/{job}").json()["status"] == "cancelled"
        whole = [each["id"] for each in httpx.get(f"{one.url}{JOBS}/{job}/events").json()["data"]]
        assert len(whole) == 1 + len(later)
