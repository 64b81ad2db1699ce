"""Scripted raters over the rater's own API, and groups for them to rate."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from dipole.protocol import images
from dipole.protocol.images import Pixels

Taste = Callable[[Pixels], float]


def grey(level: int, size: int = 8) -> Pixels:
    return np.full((size, size, 3), level, np.uint8)


def brightness(pixels: Pixels) -> float:
    return float(pixels.mean())


def group(levels: Sequence[int], prompt: str = "a grey square", **rating: Any) -> dict[str, Any]:
    """A request for the ranking of grey squares, as JSON."""
    candidates = [
        {
            "id": f"c{index}",
            "image": {"media_type": "image/png", "data": base64.b64encode(images.encode_png(grey(level))).decode()},
        }
        for index, level in enumerate(levels)
    ]
    return {"prompt": prompt, "candidates": candidates} | ({"metadata": {"rating": rating}} if rating else {})


def plain_client(url: str) -> httpx.Client:
    """A client that reads no certificates, which takes a busy machine a while."""
    return httpx.Client(base_url=url, timeout=30, trust_env=False, verify=False)


def invite(url: str, key: str | None = None, **fields: Any) -> str:
    """A new rater's token."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with plain_client(url) as client:
        made = client.post("/v1/ratings/invitations", json=fields, headers=headers)
    made.raise_for_status()
    return str(made.json()["link"].partition("=")[2])


class ScriptedRater:
    """Ranks by a taste. Whatever happens to its connection, what it sends it sends until it is taken."""

    def __init__(self, url: str, token: str, taste: Taste = brightness, *, patience_s: float = 60) -> None:
        self.taste, self.patience_s = taste, patience_s
        self.http = plain_client(url)
        self.receipts: list[dict[str, Any]] = []
        assert self.send("POST", "/v1/rater/session", json={"invitation": token}).status_code == 204

    def send(self, method: str, path: str, **kw: Any) -> httpx.Response:
        """The answer, once there is one that is no 503."""
        ends = time.monotonic() + self.patience_s
        while True:
            try:
                answer = self.http.request(method, path, **kw)
                if answer.status_code != 503:
                    return answer
            except httpx.TransportError:
                pass
            assert time.monotonic() < ends, f"{method} {path}: no answer"
            time.sleep(0.05)

    def take(self) -> dict[str, Any] | None:
        answer = self.send("POST", "/v1/rater/leases")
        assert answer.status_code in (200, 201, 204), answer.text
        return None if answer.status_code == 204 else answer.json()

    def order(self, lease: dict[str, Any]) -> list[list[str]]:
        """Labels in tiers by the pixels that it is shown."""
        scores: dict[str, float] = {}
        for image in lease["images"]:
            shown = self.send("GET", image["url"])
            assert shown.status_code == 200, shown.text
            scores[image["label"]] = self.taste(images.decode_image(shown.content, "image/png"))
        levels = sorted(set(scores.values()), reverse=True)
        return [[label for label, score in scores.items() if score == level] for level in levels]

    def rate_one(self) -> bool:
        """Whether there was something to do."""
        lease = self.take()
        if lease is None:
            return False
        tiers = self.order(lease)
        answer = self.send(
            "POST",
            f"/v1/rater/leases/{lease['id']}/answer",
            json={"tiers": tiers, "dwell_ms": 5000},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        assert answer.status_code == 201, answer.text
        self.receipts.append(answer.json())
        return True

    def rate_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            if not self.rate_one():
                time.sleep(0.02)


@contextmanager
def at_work(*raters: ScriptedRater) -> Iterator[None]:
    """Each rates, in a thread of its own, whatever comes, and is closed in the end."""
    over, failures = threading.Event(), list[BaseException]()

    def rate(rater: ScriptedRater) -> None:
        try:
            rater.rate_until(over.is_set)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=rate, args=(rater,), daemon=True) for rater in raters]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread, rater in zip(threads, raters, strict=True):
            thread.join(90)
            rater.http.close()
    assert failures == []
