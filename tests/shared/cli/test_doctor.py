"""`dipole doctor --api`: what an API tells of versions, and what it cannot tell."""

from __future__ import annotations

import importlib.metadata
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from dipole.cli import app

OURS = importlib.metadata.version("dipole")


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[str]:
    """An API that says this, by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers[self.path.partition("?")[0]]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("api", "worker", "expected"),
    [
        ({"version": OURS}, {"version": OURS}, ("ok", f"{OURS}, as here")),
        ({"version": "9.9.0"}, {"version": OURS}, ("warning", f"here {OURS}: the API 9.9.0")),
        ({}, {"version": "9.9.0"}, ("warning", f"here {OURS}: the API does not say, worker w 9.9.0")),
    ],
)
def test_versions_that_differ_are_told(api: dict[str, str], worker: dict[str, str], expected: tuple[str, str]) -> None:
    """With what to do; an upgrade under way is no reason to exit with 1."""
    answers = {"/readyz": {"status": "ready", **api}, "/livez": {"status": "alive"}, "/v1/rewards": {"data": []}}
    with answering({**answers, "/v1/workers": {"data": [{"id": "w", **worker}]}}) as url:
        done = CliRunner().invoke(app, ["doctor", "--api", url, "--json"])
    found = {each["check"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 0, done.output
    assert (found["versions"]["status"], found["versions"]["message"]) == expected
    assert ("docs/backup.md" in (found["versions"]["fix"] or "")) == (expected[0] == "warning")
    assert "not checked" in found["the rest"]["message"]
