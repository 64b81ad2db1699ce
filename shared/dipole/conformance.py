"""The conformance suite of the ranking protocol, against any endpoint in any language: `dipole rewards check URL`.

Each check is one function that states a fact and raises Failed when it does not hold, or Skipped when the endpoint does
not offer what it is about. The endpoint is trusted with nothing: answers are bounded, every wait ends.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError

from dipole import images, web
from dipole.errors import InvalidInput
from dipole.exchange import retry_after_s
from dipole.schemas import PendingRanking, Problem, Ranking, RewardInfo

MAX_ANSWER_BYTES = 4 * 2**20
CONCURRENCY = 8
PATIENCE = 3  # checks without any answer, after which the rest is not tried
MAX_EXTRA_CANDIDATES = 512

Message = TypeVar("Message", bound=BaseModel)


class Failed(Exception):
    """The fact does not hold; the message says what was seen."""


class Unreachable(Failed):
    """No answer, or none in time."""


class Skipped(Exception):
    """The endpoint does not offer what the check is about."""


@dataclass(frozen=True)
class Result:
    name: str
    fact: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""
    seconds: float = 0.0
    unreachable: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer as it came, at most MAX_ANSWER_BYTES of it."""

    status: int
    headers: httpx.Headers
    body: bytes

    def parsed(self, message: type[Message]) -> Message:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Failed(f"answered {kind or 'no content type'} instead of application/json")
        try:
            return message.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise Failed(f"not a valid {message.__name__}: {web.field_path(first['loc'])}: {first['msg']}") from None


def swatch(index: int = 0, size: int = 32) -> images.Pixels:
    """A small image that differs with `index`: a coloured square on grey."""
    pixels = np.full((size, size, 3), 128, np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] = ((index * 67) % 256, (200 + index * 31) % 256, 40)
    return pixels


def described(pixels: images.Pixels, media_type: str = "image/png") -> dict[str, Any]:
    """The `image` of a JSON candidate."""
    return {"media_type": media_type, "data": base64.b64encode(_encoded(pixels, media_type)).decode()}


def _encoded(pixels: images.Pixels, media_type: str) -> bytes:
    if media_type == images.NPY:
        return images.encode_npy(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, media_type.partition("/")[2], lossless=True)
    return buffer.getvalue()


class Target:
    """The endpoint under test, and ways to ask it."""

    def __init__(self, url: str, *, key: str | None, transport: httpx.BaseTransport | None, timeout_s: float) -> None:
        self.url, self.key, self.timeout_s = url.rstrip("/"), key, timeout_s
        self._http = httpx.Client(
            transport=transport, timeout=timeout_s, follow_redirects=False, trust_env=False,
            headers={"Accept-Encoding": "identity"},
        )  # fmt: skip

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, *, authorised: bool = True, **kwargs: Any) -> Reply:
        headers = dict(kwargs.pop("headers", {}))
        if self.key and authorised:
            headers["Authorization"] = f"Bearer {self.key}"
        ends, body = time.monotonic() + self.timeout_s, bytearray()
        try:
            with self._http.stream(method, urljoin(f"{self.url}/", path), headers=headers, **kwargs) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Failed(f"{method} /{path} answered more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > ends:
                        raise Failed(f"{method} /{path} had not finished answering after {self.timeout_s:g} s")
        except httpx.TimeoutException:
            raise Unreachable(f"{method} /{path} gave no answer within {self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unreachable(f"{method} /{path}: {type(error).__name__}: {error}") from None
        return Reply(response.status_code, response.headers, bytes(body))

    @cached_property
    def info(self) -> RewardInfo:
        reply = self.ask("GET", "v1/info")
        if reply.status != 200:
            raise Failed(f"GET /v1/info answered {reply.status}, not 200")
        return reply.parsed(RewardInfo)

    def request(self, pixels: Sequence[images.Pixels] | int = 3, **changes: Any) -> dict[str, Any]:
        listed = [swatch(index) for index in range(pixels)] if isinstance(pixels, int) else pixels
        candidates = [{"id": f"id-{index}", "image": described(one)} for index, one in enumerate(listed)]
        return {"prompt": "a photo of a red square", "candidates": candidates, **changes}

    def rank(self, request: dict[str, Any], **kwargs: Any) -> Ranking:
        """The ranking of a request, polled for if need be, its ids and ranks checked."""
        ids = [candidate["id"] for candidate in request["candidates"]]
        asked = kwargs or {"json": request}
        ranking = self.finished(self.ask("POST", "v1/rank", **asked))
        check_results(ranking, ids)
        return ranking

    def finished(self, reply: Reply) -> Ranking:
        ends = time.monotonic() + self.timeout_s
        where = "v1/rank"
        while reply.status == 202:
            where = self.location(reply) or where
            pause = retry_after_s(reply.headers.get("retry-after"))
            pause = 1.0 if pause is None else pause
            if time.monotonic() + pause > ends:
                raise Skipped(f"answers 202 and had no result within {self.timeout_s:g} s")
            time.sleep(max(pause, 0.05))
            reply = self.ask("GET", where)
        if reply.status != 200:
            raise Failed(f"answered {reply.status} to a valid request: {_detail(reply)}")
        return reply.parsed(Ranking)

    def location(self, reply: Reply) -> str:
        location: str = urljoin(f"{self.url}/v1/rank", reply.headers.get("location", ""))
        if "location" not in reply.headers or urlsplit(location)[:2] != urlsplit(self.url)[:2]:
            raise Failed(f"202 with Location {reply.headers.get('location')!r}, which is not on this endpoint")
        return location

    def refuses(self, what: str, *, names: str | None = None, **kwargs: Any) -> None:
        """POST /v1/rank must answer 4xx as problem+json, and name the field where one is to blame."""
        check_refusal(self.ask("POST", "v1/rank", **kwargs), what, names)


def _detail(reply: Reply) -> str:
    return reply.body[:200].decode("utf-8", "replace")


def check_problem(reply: Reply, what: str, *statuses: int) -> Problem:
    """4xx, or one of `statuses`, as RFC 9457 problem+json."""
    allowed = reply.status in statuses if statuses else 400 <= reply.status < 500
    if not allowed:
        raise Failed(f"{what}: answered {reply.status}, not {' or '.join(map(str, statuses)) or '4xx'}")
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != web.PROBLEM_JSON:
        raise Failed(f"{what}: answered {reply.status} as {kind or 'no content type'}, not {web.PROBLEM_JSON}")
    try:
        problem = Problem.model_validate_json(reply.body)
    except ValidationError as error:
        raise Failed(f"{what}: not a problem document: {error.errors(include_url=False)[0]['msg']}") from None
    if problem.status != reply.status:
        raise Failed(f"{what}: the document says {problem.status}, the answer {reply.status}")
    return problem


def check_refusal(reply: Reply, what: str, names: str | None = None) -> None:
    """4xx as problem+json that names the field to blame, in its detail or in `errors`."""
    problem = check_problem(reply, what)
    said = " ".join([problem.detail or "", *(error.field for error in problem.errors)])
    if names is not None and names not in said:
        raise Failed(f"{what}: the problem does not name {names!r}: {problem.detail!r}")


def check_results(ranking: Ranking, ids: Sequence[str]) -> None:
    """Request order, every id once, rank 1 best, equal scores share a rank, nulls without rank and with a reason."""
    found = [item.id for item in ranking.results]
    if found != list(ids):
        raise Failed(f"results have ids {found[:8]}, the request had {list(ids)[:8]} in this order")
    known = [item.score for item in ranking.results if item.score is not None]
    for item in ranking.results:
        if item.score is None:
            if item.rank is not None or item.error is None:
                raise Failed(f"{item.id} has a null score: its rank must be null and its error must say why")
            continue
        rank = 1 + sum(score > item.score for score in known)
        if item.rank != rank:
            raise Failed(f"{item.id} has score {item.score} and rank {item.rank}; 1 is best and ties share, so {rank}")
        if item.error is not None:
            raise Failed(f"{item.id} has a score and an error")


def run(
    url: str,
    *,
    key: str | None = None,
    transport: httpx.BaseTransport | None = None,
    timeout_s: float = 30.0,
    only: Collection[str] = (),
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run every check in order, or `only` those named; a check that fails does not stop the next."""
    from dipole.conformance_checks import CHECKS

    names = [check.__name__ for check in CHECKS]
    if unknown := sorted(set(only) - set(names)):
        raise InvalidInput(f"there is no check {unknown[0]!r}; the checks are {', '.join(names)}", field="only")
    target = Target(url, key=key, transport=transport, timeout_s=timeout_s)
    results: list[Result] = []
    try:
        for check in CHECKS:
            if only and check.__name__ not in only:
                continue
            gone = sum(result.unreachable for result in results) >= PATIENCE
            result = _run_one(check, target, gone=gone)
            on_result(result)
            results.append(result)
    finally:
        target.close()
    return results


def _run_one(check: Callable[[Target], None], target: Target, *, gone: bool) -> Result:
    name, fact = check.__name__, (check.__doc__ or "").strip().splitlines()[0]
    began = time.monotonic()
    try:
        if gone:
            raise Skipped("the endpoint does not answer")
        check(target)
    except Skipped as skipped:
        return Result(name, fact, "skipped", str(skipped), time.monotonic() - began)
    except Failed as failed:
        lost = isinstance(failed, Unreachable)
        return Result(name, fact, "failed", str(failed), time.monotonic() - began, unreachable=lost)
    return Result(name, fact, "passed", "", time.monotonic() - began)


def concurrently(target: Target, count: int = CONCURRENCY) -> None:
    """`count` different requests at once: each gets its own ids back, or is told when to come back."""

    def one(index: int) -> None:
        request = target.request([swatch(index), swatch(index + 1)])
        for place, candidate in enumerate(request["candidates"]):
            candidate["id"] = f"r{index}-{place}"
        reply = target.ask("POST", "v1/rank", json=request)
        if reply.status in (429, 503):
            check_problem(reply, "overload", 429, 503)
            if "retry-after" not in reply.headers:
                raise Failed(f"answered {reply.status} without Retry-After")
            return
        check_results(target.finished(reply), [candidate["id"] for candidate in request["candidates"]])

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(one, index) for index in range(count)]:
            future.result()


def oversized_png(width: int = 10_000, height: int = 10_000) -> bytes:
    """A PNG of 100 megapixels in under 100 bytes: a header that promises more than anybody should decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def multipart(target: Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request, and the httpx arguments that send it as multipart with npy or PNG parts."""
    kind = images.NPY if images.NPY in target.info.media_types else "image/png"
    request = target.request()
    for candidate in request["candidates"]:
        candidate["image"] = {"media_type": kind}
    files = [
        (candidate["id"], (candidate["id"], _encoded(swatch(index), kind), kind))
        for index, candidate in enumerate(request["candidates"])
    ]
    return request, {"data": {"request": json.dumps(request)}, "files": files}


def fresh_key() -> dict[str, str]:
    return {"Idempotency-Key": f"check-{uuid.uuid4().hex}"}


def pending_of(reply: Reply) -> PendingRanking:
    """A 202's body, or Skipped when the endpoint answered at once."""
    if reply.status == 200:
        raise Skipped("answers at once, also to Prefer: respond-async")
    if reply.status != 202:
        raise Failed(f"answered {reply.status} to Prefer: respond-async, not 200 or 202")
    return reply.parsed(PendingRanking)
