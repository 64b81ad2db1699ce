"""The ranking client: one group in, one checked Ranking out, or a RewardError that says what happened.

    client = RankClient("http://127.0.0.1:8401", key=None)         # one per endpoint, shared by threads
    ranking = client.rank(prompt, images, metadata, idempotency_key=group_id, deadline_s=60)

Nothing an endpoint answers is trusted: size, type, schema, length, ids and order are checked, numbers must be finite,
redirects are not followed. Transport errors, 408, 429 and 5xx are tried again with jitter, Retry-After is honoured, an
open circuit is waited for, a 202 is polled; all of it under the one deadline. Requests go straight to the endpoint:
proxies from the environment are not used.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import JsonValue

from dipole import images
from dipole.breaker import CircuitBreaker
from dipole.errors import DipoleError
from dipole.exchange import Answer, Deadline, Endpoint, EndpointError, invalid, retrying
from dipole.schemas import PendingRanking, Ranking, RewardInfo

__all__ = ["CircuitBreaker", "EndpointError", "RankClient", "StillPending"]

MAX_ANSWER_BYTES = 4 * 2**20
CANCEL_S = 3.0
POLL_S = (0.05, 30.0)


class StillPending(DipoleError):
    """The endpoint took the group and is not done: look at `location` after `retry_after` seconds."""

    slug = "still-pending"

    def __init__(self, message: str, *, location: str, retry_after: float) -> None:
        super().__init__(message)
        self.location, self.retry_after = location, retry_after


class RankClient:
    """Ranks over HTTP. Thread-safe; close it, or use it as a context manager.

    `transport` and `breaker` are the seams for tests and for sharing a circuit between clients.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        breaker: CircuitBreaker | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.breaker = breaker or CircuitBreaker()
        self._endpoint = Endpoint(
            base_url, key=key, transport=transport, breaker=self.breaker, max_answer_bytes=max_answer_bytes
        )
        self.base_url = self._endpoint.base_url
        self._info: RewardInfo | None = None

    def __enter__(self) -> RankClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._endpoint.http.close()

    def info(self, *, deadline_s: float = 10.0) -> RewardInfo:
        """What the endpoint says of itself; asked once and kept until a request is refused. Raises RewardError."""
        deadline = Deadline(deadline_s)
        return retrying(deadline)(self._known_info, deadline)

    def rank(
        self,
        prompt: str,
        candidates: Sequence[images.Pixels | bytes],
        metadata: Mapping[str, JsonValue] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float = 60.0,
        location: str | None = None,
        poll: bool = True,
        retry: bool = True,
    ) -> Ranking:
        """Rank K images for one prompt; candidate k's id is `c{k}` and results stand in the order given.

        Candidates are RGB uint8 arrays (H, W, 3), or the bytes of such arrays as .npy. Raises RewardError with `code`
        timeout, transport, http_status, invalid_response, not_finite (NaN or infinity for a number), circuit_open,
        cancelled or too_large. With `poll=False` a 202 raises StillPending at once, and a later call with its
        `location` looks again. With `retry=False` there is one attempt; a retryable error leaves what is pending alone.
        """
        deadline = Deadline(deadline_s)
        job = _Job(prompt, metadata, candidates, idempotency_key or uuid.uuid4().hex, location)
        try:
            if not retry:
                return self._attempt(job, deadline, poll)
            return retrying(deadline)(self._attempt, job, deadline, poll)
        except StillPending:
            raise
        except BaseException as error:
            comes_back = not retry and isinstance(error, EndpointError) and error.retryable
            if job.location is not None and not comes_back:
                self._cancel(job.location)
            raise

    def _attempt(self, job: _Job, deadline: Deadline, poll: bool) -> Ranking:
        """Post the group unless it was, and poll as long as the answer is 202."""
        ranking = self._post(job, deadline) if job.location is None else self._poll(job, deadline, pause=False)
        while ranking is None:
            if not poll:
                raise StillPending(f"{self.base_url}: pending", location=job.location or "", retry_after=job.poll_after)
            ranking = self._poll(job, deadline)
        job.location = None
        return ranking

    def _post(self, job: _Job, deadline: Deadline) -> Ranking | None:
        info = self._known_info(deadline)
        if len(job.candidates) > info.max_candidates:
            message = f"{self.base_url} ranks at most {info.max_candidates} candidates at once"
            raise EndpointError(f"{message}, not {len(job.candidates)}", code="too_large", sick=False)
        body = job.body(multipart=info.multipart and images.NPY in info.media_types)
        with self._endpoint.circuit():
            try:
                status, answer = self._endpoint.send(
                    "POST", f"{self.base_url}/v1/rank", deadline, headers={"Idempotency-Key": job.key}, **body
                )
            except EndpointError as error:
                if error.http_status is not None and not error.retryable:
                    self._info = None  # perhaps it takes other things than it used to
                raise
            return self._read(job, status, answer)

    def _poll(self, job: _Job, deadline: Deadline, *, pause: bool = True) -> Ranking | None:
        if pause:
            self._pause(job, deadline)
        assert job.location is not None
        with self._endpoint.circuit():
            try:
                status, answer = self._endpoint.send("GET", job.location, deadline)
            except EndpointError as error:
                if error.http_status == 404:  # a restart forgot it: the same key asks again
                    job.location, error.retryable = None, True
                raise
            return self._read(job, status, answer)

    def _pause(self, job: _Job, deadline: Deadline) -> None:
        pause = min(max(job.poll_after, POLL_S[0]), POLL_S[1]) * random.uniform(1.0, 1.2)  # noqa: S311  # spreads pollers
        if pause >= deadline.left():
            raise EndpointError(f"{self.base_url}: still pending at the deadline", code="timeout", sick=False)
        time.sleep(pause)

    def _read(self, job: _Job, status: int, answer: Answer) -> Ranking | None:
        """The checked ranking; None while it is pending, with `job.location` saying where to look."""
        if status == 200 and (job.location is None or b'"results"' in answer.body):
            ranking = self._endpoint.parsed(Ranking, answer)
            _check(ranking, len(job.candidates), self.base_url)
            return ranking
        state = self._endpoint.parsed(PendingRanking, answer)
        if state.status != "pending":
            job.location = None
            reason = state.error.message if state.error else "no reason given"
            code = "cancelled" if state.status == "cancelled" else "http_status"
            raise EndpointError(f"{self.base_url}: the ranking was {state.status}: {reason}", code=code, sick=False)
        if answer.location is not None or job.location is None:
            location = urljoin(f"{self.base_url}/v1/rank", answer.location or "")
            if not answer.location or urlsplit(location)[:2] != urlsplit(self.base_url)[:2]:
                raise invalid(f"{self.base_url} answered 202 with Location {answer.location!r}, which is not its own")
            job.location = location
        job.poll_after = 1.0 if answer.retry_after is None else answer.retry_after
        return None

    def _known_info(self, deadline: Deadline) -> RewardInfo:
        info = self._info
        if info is None:
            with self._endpoint.circuit():
                _, answer = self._endpoint.send("GET", f"{self.base_url}/v1/info", deadline)
                info = self._info = self._endpoint.parsed(RewardInfo, answer)
        return info

    def _cancel(self, location: str) -> None:
        """Tell the endpoint that nobody waits any more; it may be gone, which is fine too."""
        with contextlib.suppress(httpx.HTTPError), self._endpoint.http.stream("DELETE", location, timeout=CANCEL_S):
            pass  # whatever it answers, nobody reads it


@dataclass
class _Job:
    """One group on its way; both encodings are made at most once, whatever the number of attempts."""

    prompt: str
    metadata: Mapping[str, JsonValue] | None
    candidates: Sequence[images.Pixels | bytes]
    key: str
    location: str | None = None
    poll_after: float = 1.0
    _bodies: dict[bool, dict[str, Any]] = field(default_factory=dict)

    def body(self, *, multipart: bool) -> dict[str, Any]:
        if multipart not in self._bodies:
            self._bodies[multipart] = self._multipart() if multipart else self._json()
        return self._bodies[multipart]

    def _request(self, described: Iterable[dict[str, str]]) -> dict[str, Any]:
        listed = [{"id": f"c{index}", "image": image} for index, image in enumerate(described)]
        request: dict[str, Any] = {"prompt": self.prompt, "candidates": listed}
        if self.metadata is not None:
            request["metadata"] = dict(self.metadata)
        return request

    def _multipart(self) -> dict[str, Any]:
        request = self._request({"media_type": images.NPY} for _ in self.candidates)
        parts = [
            (f"c{index}", (f"c{index}.npy", one if isinstance(one, bytes) else images.encode_npy(one), images.NPY))
            for index, one in enumerate(self.candidates)
        ]
        return {"data": {"request": json.dumps(request)}, "files": parts}

    def _json(self) -> dict[str, Any]:
        pixels = (images.decode(one, images.NPY) if isinstance(one, bytes) else one for one in self.candidates)
        encoded = (base64.b64encode(images.encode_png(one)).decode() for one in pixels)
        return {"json": self._request({"media_type": "image/png", "data": data} for data in encoded)}


def _check(ranking: Ranking, count: int, url: str) -> None:
    """Every candidate exactly once and in the order sent."""
    if len(ranking.results) != count:
        raise invalid(f"{url} answered {len(ranking.results)} results for {count} candidates")
    ids, sent = [item.id for item in ranking.results], [f"c{index}" for index in range(count)]
    if ids != sent:
        how = (
            "twice" if len(set(ids)) < count else "in another order" if set(ids) == set(sent) else "that were not sent"
        )
        raise invalid(f"{url} answered ids {how}")
