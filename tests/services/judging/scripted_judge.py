"""An OpenAI-compatible server on a socket that judges as a test tells it to, and judges to tell it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from dipole.settings import load_settings
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import Pixels, Scores
from dipole_rewards.rewards.judge import Judge

KEY = "sk-secret-of-the-test"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; a dict or a list is sent as JSON. `after_s` is how long it takes."""

    body: dict[str, Any] | list[Any] | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass(frozen=True)
class Question:
    """A request as a judge sees it: `shown` holds each label and the brightness of the image below it."""

    body: dict[str, Any]
    headers: dict[str, str]
    began: float

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def data(self) -> str:
        return str(self.body["messages"][1]["content"][0]["text"])

    @property
    def shown(self) -> list[tuple[str, int]]:
        _, *rest = self.body["messages"][1]["content"]
        return [
            (label["text"], brightness(image["image_url"]["url"]))
            for label, image in zip(rest[::2], rest[1::2], strict=True)
        ]

    @property
    def brightnesses(self) -> list[int]:
        return [each for _, each in self.shown]


def brightness(uri: str) -> int:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    return int(np.array(Image.open(io.BytesIO(data)))[0, 0, 0])


def completion(text: str | None, *, logprobs: dict[str, float] | None = None, **message: Any) -> Answer:
    """A chat completion as OpenAI and vLLM write it; `logprobs` are probabilities of first tokens."""
    choice: dict[str, Any] = {
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}
    }  # fmt: skip
    if logprobs is not None:
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in logprobs.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "vlm", "choices": [choice], "usage": usage}
    return Answer({**body, "system_fingerprint": "fp_7"})


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "type": "invalid_request_error"}}, status, named)


Judging = Callable[[Question], Answer]


class Server(ThreadingHTTPServer):
    """Judges by `judging` and keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, judging: Judging) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.judging = judging
        self.questions: list[Question] = []
        self.judges: list[Judge] = []
        self.in_flight = self.most_in_flight = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def asked(self, since: int = 0) -> list[Question]:
        return self.questions[since:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = Question(body, {name.lower(): value for name, value in self.headers.items()}, time.monotonic())
        with self.server.lock:
            self.server.questions.append(question)
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            answer = self.server.judging(question) if self.path == "/v1/chat/completions" else refusal(404)
            self.server.closing.wait(answer.after_s)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1
        self.send(answer)

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "vlm", "object": "model", "created": 1, "owned_by": "us"}]}
        self.send(Answer(models) if self.path == "/v1/models" else refusal(404))

    def send(self, answer: Answer) -> None:
        is_json = not isinstance(answer.body, bytes)
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        with contextlib.suppress(OSError):  # the judge has hung up
            self.send_response(answer.status)
            kind = "application/json" if is_json else "text/html"
            for name, value in {"content-type": kind, "content-length": str(len(data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Start = Callable[[Judging], Server]


@contextlib.contextmanager
def servers() -> Iterator[Start]:
    """`start(judging)` is a server that runs until this ends."""
    begun: list[Server] = []

    def begin(judging: Judging) -> Server:
        server = Server(judging)
        begun.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield begin
    for server in begun:
        for each in server.judges:
            each.close()
        server.closing.set()
        server.shutdown()
        server.server_close()


def judge(server: Server, **settings: Any) -> Judge:
    """A judge that asks the server, until the test ends."""
    server.judges.append(
        Judge(load_settings(JudgeSettings, **{"judge_url": server.url, "judge_model": "vlm", **settings}))
    )
    return server.judges[-1]


def group(*brightnesses: int) -> list[Pixels]:
    return [np.full((32, 32, 3), each, np.uint8) for each in brightnesses]


def score(reward: Judge, *brightnesses: int, prompt: str = "a bright image") -> Scores:
    return reward.score(prompt=prompt, images=group(*brightnesses), metadata=None)


def codes(scores: Scores) -> dict[int, str]:
    return {index: error.code for index, error in scores.errors.items()}


# ---- judges that answer well ----------------------------------------------------------------------------------------


def says_yes(question: Question) -> Answer:
    """P(yes) = brightness / 255, spread over spellings, with log probabilities."""
    p = (question.brightnesses[0] + 0.5) / 256
    return completion("yes", logprobs={"Yes": p * 0.6, " yes": p * 0.3, "no": (1 - p) * 0.9, "I": 0.1})


def writes_numbers(question: Question) -> Answer:
    """The brightness in percent, as JSON; no log probabilities, whatever was asked."""
    return completion(json.dumps({"score": round(question.brightnesses[0] / 2.55)}))


def prefers_bright(question: Question) -> Answer:
    """The brighter of two images, or all from bright to dark."""
    shown = question.brightnesses
    if "ranking" in question.system:
        return completion(json.dumps({"ranking": [1 + int(i) for i in np.argsort(-np.array(shown), kind="stable")]}))
    return completion(json.dumps({"better": "tie" if shown[0] == shown[1] else "AB"[shown[1] > shown[0]]}))


def prefers_the_first(question: Question) -> Answer:
    """Whatever stands first."""
    if "ranking" in question.system:
        return completion(json.dumps({"ranking": list(range(1, 1 + len(question.shown)))}))
    return completion('{"better": "A"}')


def where(dark: Callable[[Question], bool], otherwise: Judging, then: Judging) -> Judging:
    return lambda question: then(question) if dark(question) else otherwise(question)
