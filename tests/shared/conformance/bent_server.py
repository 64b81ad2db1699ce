"""The real reward service behind a middleware that can bend one thing, and the simplest ways to bend.

`Bent` stands before the app: it has each request whole, may change it, ask the app, and change the answer. With the
bend `straight` the server is right.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import SecretStr

from dipole_rewards.app import create_app
from dipole_rewards.settings import RewardSettings

KEY = "a-key-of-enough-letters"
MAX_CANDIDATES = 6
MAX_PIXELS = 2**20
VAE = Path(__file__).resolve().parents[3] / "trainer/dipole_trainer/tiny_turbo/vae"
CACHE: dict[str, Any] = {}  # what a server keeps in globals, and should not


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def ranks(self) -> bool:
        return (self.method, self.path) == ("POST", "/v1/rank")

    @property
    def json(self) -> Any:
        """The body as JSON, or None."""
        with suppress(ValueError, RecursionError):
            return json.loads(self.body)
        return None

    def candidates(self) -> list[dict[str, Any]]:
        found = self.json.get("candidates") if isinstance(self.json, dict) else None
        listed = found if isinstance(found, list) else []
        return [one for one in listed if isinstance(one, dict) and "id" in one and isinstance(one.get("image"), dict)]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Forward = Callable[[Asked], Awaitable[Answer]]
Bend = Callable[[Asked, Forward], Awaitable[Answer]]


def reply(document: Any, status: int = 200, kind: str = "application/json", **headers: str) -> Answer:
    """A document, or bytes, as an answer."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Answer(status, {"content-type": kind, **headers}, body)


def changed(answer: Answer, **fields: Any) -> Answer:
    return replace(answer, body=json.dumps({**answer.json, **fields}).encode())


class Bent:
    """An ASGI app around another. `patient` waits for a body however large it was announced."""

    def __init__(self, app: Any) -> None:
        self.app, self.bend, self.patient = app, straight, False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {k.decode(): v.decode("latin-1") for k, v in scope.get("headers", [])}
        huge = int(headers.get("content-length", 0)) > 2**30
        if scope["type"] != "http" or (huge and not self.patient):
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body, more = body + message.get("body", b""), message.get("more_body", False)

        async def forward(asked: Asked) -> Answer:
            return await self._ask(scope, asked)

        answer = await self.bend(Asked(scope["method"], scope["path"], headers, body), forward)
        kept = {**answer.headers, "content-length": str(len(answer.body))}
        listed = [(k.encode(), v.encode("latin-1")) for k, v in kept.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": listed})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _ask(self, scope: Any, asked: Asked) -> Answer:
        sent: list[Any] = []
        headers = {**asked.headers, "content-length": str(len(asked.body))}
        listed = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
        waiting = [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> Any:
            return waiting.pop() if waiting else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app({**scope, "method": asked.method, "headers": listed}, receive, send)
        began = next(message for message in sent if message["type"] == "http.response.start")
        body = b"".join(message.get("body", b"") for message in sent)
        return Answer(began["status"], {k.decode().lower(): v.decode() for k, v in began["headers"]}, body)


@contextmanager
def served(certificate: Path | None = None, ca: Path | None = None) -> Iterator[tuple[str, Bent]]:
    """The right server on a free port of loopback, ready; its `Bent` makes it wrong. With a certificate, over TLS."""
    settings = RewardSettings(
        reward="dipole_rewards.rewards.colourfulness:Colourfulness",
        reward_key=SecretStr(KEY),
        reward_max_candidates=MAX_CANDIDATES,
        reward_max_pixels=MAX_PIXELS,
        reward_vae=VAE,
    )
    bent = Bent(create_app(settings))
    config = uvicorn.Config(bent, log_config=None, lifespan="on", timeout_graceful_shutdown=1, ssl_certfile=certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"{'https' if certificate else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        while thread.is_alive() and not ready(url, ca):
            time.sleep(0.02)
        yield url, bent
        server.should_exit = True
        thread.join()


def ready(url: str, ca: Path | None) -> bool:
    context = ssl.create_default_context(cafile=ca) if ca else None
    with suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5, context=context) as answer:
        return bool(answer.status == 200)
    return False


# ---- bends ------------------------------------------------------------------------------------------------------


async def straight(asked: Asked, forward: Forward) -> Answer:
    return await forward(asked)


def answers(change: Callable[[Answer], Answer], *, path: str = "/v1/rank", status: int | None = 200) -> Bend:
    """Change the answers of one path that have this status; of None, every answer."""

    async def bend(asked: Asked, forward: Forward) -> Answer:
        answer = await forward(asked)
        return change(answer) if asked.path.startswith(path) and status in (None, answer.status) else answer

    return bend


def results(change: Callable[[list[Any]], list[Any]]) -> Bend:
    """Change the results of every ranking, wherever it is answered."""

    def of(answer: Answer) -> Answer:
        return changed(answer, results=change(answer.json["results"])) if b'"results"' in answer.body else answer

    return answers(of, path="/v1/rank")


def each(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Bend:
    return results(lambda found: [{**one, **change(one)} for one in found])


def refusals(change: Callable[[Asked, Answer], Answer]) -> Bend:
    """Change every 4xx to a ranking request."""

    async def bend(asked: Asked, forward: Forward) -> Answer:
        answer = await forward(asked)
        return change(asked, answer) if 400 <= answer.status < 500 and answer.status != 401 else answer

    return bend


def asks(change: Callable[[Asked], Asked]) -> Bend:
    """Change what the app is asked."""

    async def bend(asked: Asked, forward: Forward) -> Answer:
        return await forward(change(asked))

    return bend


def without(*names: str) -> Callable[[Asked], Asked]:
    return lambda asked: replace(asked, headers={k: v for k, v in asked.headers.items() if k not in names})


def with_key(asked: Asked) -> Asked:
    return replace(asked, headers={**asked.headers, "authorization": f"Bearer {KEY}"})


def info(**fields: Any) -> Bend:
    return answers(lambda answer: changed(answer, **fields), path="/v1/info")


def to(path: str, answer: Answer) -> Bend:
    """Always this answer, at one path."""
    return answers(lambda _: answer, path=path, status=None)


def dropped(answer: Answer, name: str) -> Answer:
    return replace(answer, headers={k: v for k, v in answer.headers.items() if k != name})
