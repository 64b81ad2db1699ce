"""A reward that a test holds and lets go, so that a job is surely where the test wants it; or one that misbehaves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from .quiet_handler import QuietHandler

MAX_HOLD_S = 150


class Referee:
    """A reward server in a thread: scores are the candidates' positions, unless `mode` says how it misbehaves.

    hang, html, nan, count, twice (an id), huge (10 GB). After `dies_after` questions it closes its port, as a process
    that ends does.
    `hold(after=n)` makes every question but the first n wait: a job that asks is then surely half-way.
    """

    def __init__(self, mode: str = "good", *, port: int = 0, dies_after: int | None = None) -> None:
        self.mode, self.dies_after = mode, dies_after
        self.held = threading.Event()  # a question waits now
        self.sent = 0  # bytes of huge answers that were taken
        self._asked: dict[str, int] = {}  # idempotency key: its place; a repeated question keeps its own
        self._after: int | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def hold(self, *, after: int | None) -> None:
        """Let the first `after` questions pass, and no others; None lets all pass."""
        with self._changed:
            self._after = after
            self.held.clear()
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.notify_all()
        if not closed:
            self.server.shutdown()
            self.server.server_close()

    def _answer(self, key: str, ids: list[str]) -> tuple[str, str] | None:
        """Content type and body; None hangs up."""
        with self._changed:
            place = self._asked.setdefault(key, len(self._asked) + 1)
            if self._waits(place):
                self.held.set()
                self._changed.wait_for(lambda: not self._waits(place), MAX_HOLD_S)
            if self._closed or (self.dies_after is not None and place > self.dies_after):
                return None
        if self.mode in ("html", "huge"):
            return "text/html" if self.mode == "html" else "application/json", "<html>It works!</html>"
        scores: list[Any] = [float(index) for index in range(len(ids))]
        if self.mode == "nan":
            scores[0] = float("nan")
        if self.mode == "twice":
            ids = [ids[0], *ids[:-1]]
        results = [{"id": one, "score": score, "rank": 1} for one, score in zip(ids, scores, strict=True)]
        names = {"model": "referee", "model_revision": "1", "recipe_version": "1"}
        shown = results[1:] if self.mode == "count" else results
        return "application/json", json.dumps({"id": "rk_1", "created": 1, "results": shown, **names})

    def _waits(self, place: int) -> bool:
        return not self._closed and (self.mode == "hang" or (self._after is not None and place > self._after))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        referee = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                info = {"name": "referee", "model": "referee", "model_revision": "1", "recipe_version": "1"}
                self.say("application/json", json.dumps({**info, "media_types": ["application/x-npy"]}))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ids = [one.decode() for one in re.findall(rb'"id": ?"([^"]+)"', body)]
                answer = referee._answer(self.headers["Idempotency-Key"], ids)
                if answer is None:
                    self.close_connection = True
                    return
                self.say(*answer)
                if len(referee._asked) == referee.dies_after:
                    threading.Thread(target=referee.close, daemon=True).start()

            def say(self, kind: str, text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                huge = referee.mode == "huge" and self.command == "POST"
                self.send_header("Content-Length", str(10 * 2**30 if huge else len(text)))
                self.end_headers()
                self.wfile.write(text.encode())
                while huge:  # until the caller has had enough
                    self.wfile.write(bytes(2**20))
                    referee.sent += 2**20

        return Handler


@pytest.fixture(scope="module")
def referee() -> Iterator[Callable[..., Referee]]:
    """Makes referees and closes them in the end."""
    made: list[Referee] = []

    def make(*arguments: Any, **options: Any) -> Referee:
        made.append(Referee(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
