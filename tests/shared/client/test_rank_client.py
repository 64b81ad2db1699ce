"""RankClient against endpoints that are right, slow, broken and hostile. Servers are transports or real sockets."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr, ValidationError
from python_multipart import parse_form

from dipole.broker.references import StoredGroup, make_reference
from dipole.client.circuit_breaker import CircuitBreaker
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.errors import InvalidInput, RewardError
from dipole.protocol import images
from dipole.protocol.schemas import Ranking

from .fake_clock import FakeClock

IMAGES = [np.full((4, 4, 3), 60 * index, np.uint8) for index in range(3)]
INFO = {
    "name": "fake", "model": "fake", "model_revision": "1", "recipe_version": "1",
    "media_types": ["image/png", "application/x-npy"], "max_candidates": 8,
}  # fmt: skip
Handler = Callable[[httpx.Request], httpx.Response]


def ranking(ids: list[str], scores: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    scores = scores if scores is not None else [0.1 * index for index in range(len(ids))]
    results = [{"id": name, "score": score, "rank": 1} for name, score in zip(ids, scores, strict=True)]
    known = {"created": 1, "model": "fake", "model_revision": "1", "recipe_version": "1"}
    return {"id": "rank_1", "object": "ranking", "status": "completed", "results": results, **known, **changes}


class Fake(httpx.BaseTransport):
    """An endpoint: /v1/info is right, everything else is what the test says."""

    def __init__(self, *answers: Handler | httpx.Response, info: dict[str, Any] | None = None) -> None:
        self.answers, self.info = list(answers), {**INFO, **(info or {})}
        self.seen: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.answer(request)  # a response made by hand has been read already: give it a stream to be read from
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/v1/info"):
            return httpx.Response(200, json=self.info)
        request.read()
        self.seen.append(request)
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        return answer(request) if callable(answer) else answer

    def client(self, endpoint: Endpoint | str = "http://fake", **options: Any) -> RankClient:
        return RankClient(endpoint, transport=self, **options)


def ok(*scores: float | None) -> httpx.Response:
    ids = [f"c{index}" for index in range(3)]
    return httpx.Response(200, json=ranking(ids, list(scores) or None))


def pending(location: str | None = "/v1/rankings/rank_1") -> httpx.Response:
    headers = {"Retry-After": "0"} | ({"Location": location} if location else {})
    return httpx.Response(202, json={"id": "rank_1", "status": "pending"}, headers=headers)


def rank(fake: Fake, deadline_s: float = 5.0, **options: Any) -> list[float | None]:
    with fake.client(**options) as client:
        return [item.score for item in client.rank("p", IMAGES, {"tag": "x"}, deadline_s=deadline_s).results]


def test_the_fast_lane_sends_npy_parts() -> None:
    """With multipart and npy in /v1/info, the images travel as bit-equal npy parts beside the JSON."""
    fake = Fake(ok())
    assert rank(fake) == [0.0, 0.1, 0.2]
    fields: dict[Any, Any] = {}
    files: dict[Any, Any] = {}
    headers = {"Content-Type": fake.seen[0].headers["content-type"].encode()}
    parse_form(
        headers,
        io.BytesIO(fake.seen[0].content),
        lambda one: fields.update({one.field_name: one.value}),
        lambda one: files.update({one.field_name: one.file_object.seek(0) or one.file_object.read()}),
    )
    request = json.loads(fields[b"request"])
    assert request["prompt"] == "p"
    assert request["metadata"] == {"tag": "x"}
    assert [candidate["id"] for candidate in request["candidates"]] == ["c0", "c1", "c2"]
    for index, sent in enumerate(IMAGES):
        assert np.array_equal(images.decode_image(files[f"c{index}".encode()], images.NPY), sent)


STORED = StoredGroup(make_reference(np.stack(IMAGES)), "f0")


def test_who_reads_the_memory_they_lie_in_is_sent_a_reference_alone() -> None:
    """No candidate is even looked at; who reads another folder, or none, is sent them all."""

    class Untouched(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the candidates were looked at")

    fake = Fake(ok(), info={"memory": "f0"})
    with fake.client() as client:
        client.rank("p", Untouched(IMAGES), {"tag": "x"}, stored=STORED)
    request = json.loads(fake.seen[0].content)
    assert (request["stored"], request["metadata"]) == (STORED.reference, {"tag": "x"})
    assert [each["image"] for each in request["candidates"]] == [{"media_type": images.NPY}] * 3
    for info in ({"memory": "f1"}, {}):
        fake = Fake(ok(), info=info)
        with fake.client() as client:
            client.rank("p", IMAGES, stored=STORED)
        assert b"stored" not in fake.seen[0].content
        assert len(fake.seen[0].content) > sum(image.nbytes for image in IMAGES)


@pytest.mark.parametrize("status", [415, 422])
def test_what_is_not_found_in_memory_is_sent_after_all(status: int) -> None:
    """At once and with the same key, also to an older version that knows no such field; an endpoint that refuses that
    too is told as refusing.
    """
    fake = Fake(httpx.Response(status), ok(), info={"memory": "f0"})
    with fake.client() as client:
        assert client.rank("p", IMAGES, stored=STORED, retry=False).results[2].score == 0.2
    assert len({request.headers["idempotency-key"] for request in fake.seen}) == 1
    assert [b"stored" in request.content for request in fake.seen] == [True, False]
    fake = Fake(httpx.Response(status), info={"memory": "f0"})
    with fake.client() as client, pytest.raises(EndpointError, match=str(status)):
        client.rank("p", IMAGES, stored=STORED)
    assert len(fake.seen) == 2


@pytest.mark.parametrize("info", [{"multipart": False}, {"media_types": ["image/png"]}])
def test_other_endpoints_get_json_with_png(info: dict[str, Any]) -> None:
    """Without the fast lane, arrays and npy bytes alike are sent as base64 PNG."""
    fake = Fake(ok(), info=info)
    with fake.client() as client:
        client.rank("p", [images.encode_npy(IMAGES[0]), *IMAGES[1:]])
    candidates = json.loads(fake.seen[0].content)["candidates"]
    for candidate, sent in zip(candidates, IMAGES, strict=True):
        data = images.decode_base64(candidate["image"]["data"])
        assert np.array_equal(images.decode_image(data, "image/png"), sent)


def test_nulls_come_through_as_nulls() -> None:
    """A candidate without a score is None, never 0."""
    assert rank(Fake(ok(0.5, None, 0.25))) == [0.5, None, 0.25]


RIGHT = ["c0", "c1", "c2"]
WRONG_ANSWERS = {
    "wrong count": ranking(RIGHT[:2]),
    "duplicate ids": ranking(["c0", "c1", "c1"]),
    "unknown ids": ranking(["c0", "c1", "x"]),
    "wrong order": ranking(["c1", "c0", "c2"]),
    "scores as text": ranking(RIGHT, ["high", "low", "low"]),
    "another status": ranking(RIGHT, status="done"),
    "a version too long to keep": ranking(RIGHT, model_revision="x" * 256),
    "no ids": {"scores": [1, 2, 3]},
    "a list": [],
}


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_has_a_code_of_its_own(score: float) -> None:
    """The endpoint works and cannot score these candidates: its circuit does not hear of it."""
    body = json.dumps(ranking(RIGHT, [0.1, score, 0.2]))
    fake = Fake(httpx.Response(200, content=body, headers={"content-type": "application/json"}))
    breaker = CircuitBreaker(failures=1, cool_off_s=60)
    for _ in range(2):
        with pytest.raises(RewardError) as caught:
            rank(fake, breaker=breaker)
        assert (caught.value.code, caught.value.retryable) == ("not_finite", False)


@pytest.mark.parametrize("body", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_wrong_answer_is_refused_and_not_asked_for_again(body: Any) -> None:
    """Whatever is not exactly a ranking of this group is invalid_response, after one attempt."""
    fake = Fake(httpx.Response(200, content=json.dumps(body), headers={"content-type": "application/json"}))
    with pytest.raises(RewardError) as caught:
        rank(fake)
    assert caught.value.code == "invalid_response"
    assert not caught.value.retryable
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (httpx.Response(200, html="<h1>It works!</h1>"), "invalid_response"),
        (httpx.Response(200, content=b"{", headers={"content-type": "application/json"}), "invalid_response"),
        (httpx.Response(302, headers={"location": "http://169.254.169.254/"}), "invalid_response"),
        (httpx.Response(200, json=ranking(RIGHT, usage={"x": "y" * 9000})), "too_large"),
        (httpx.Response(200, content=b"x", headers={"content-encoding": "identity, x"}), "invalid_response"),
        (httpx.Response(422, json={"detail": "candidates[0].image is damaged"}), "http_status"),
        (httpx.Response(404, html="nginx"), "http_status"),
        (pending("http://elsewhere/v1/rankings/1"), "invalid_response"),
        (pending(None), "invalid_response"),
    ],
    ids=["html", "cut json", "redirect", "huge", "compressed", "422", "404", "foreign location", "no location"],
)
def test_hostile_answers_have_a_code(answer: httpx.Response, code: str) -> None:
    """HTML, redirects, oversized bodies, refusals and foreign Locations end at once with their code."""
    fake = Fake(answer)
    with pytest.raises(RewardError) as caught:
        rank(fake, max_answer_bytes=8000)
    assert caught.value.code == code
    assert [request.url.host for request in fake.seen] == ["fake"]


def test_a_problem_is_quoted() -> None:
    """The endpoint's own words reach the job's events."""
    with pytest.raises(RewardError, match=r"422: candidates\[0\]\.image is damaged"):
        rank(Fake(httpx.Response(422, json={"detail": "candidates[0].image is damaged"})))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again_with_one_key(status: int) -> None:
    """The retry carries the same Idempotency-Key and gets the answer."""
    fake = Fake(httpx.Response(status), ok())
    assert rank(fake) == [0.0, 0.1, 0.2]
    assert len({request.headers["idempotency-key"] for request in fake.seen}) == 1


def test_a_broken_connection_is_tried_again() -> None:
    """A reset in the middle is a transport error, and retried."""

    def reset(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset", request=request)

    assert rank(Fake(reset, ok())) == [0.0, 0.1, 0.2]


def test_retry_after_is_honoured(clock: FakeClock) -> None:
    """The second attempt waits for as long as the endpoint asked, and at most a second more."""
    began = clock.now
    rank(Fake(httpx.Response(503, headers={"Retry-After": "3"}), ok()))
    assert 3 <= clock.now - began <= 4


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3600"}])
@pytest.mark.parametrize("oversleeps_s", [0.0, 1.0])
def test_retries_end_with_the_deadline(clock: FakeClock, headers: dict[str, str], oversleeps_s: float) -> None:
    """No attempt and no pause goes past the deadline, also when Retry-After asks for an hour. The error is what the
    endpoint answered, also where a busy machine wakes up too late for another attempt.
    """
    fake, began = Fake(httpx.Response(503, headers=headers)), clock.now
    clock.oversleeps_s = oversleeps_s
    with pytest.raises(RewardError) as caught:
        rank(fake, deadline_s=6, breaker=CircuitBreaker(failures=1000))
    assert caught.value.code == "http_status"
    assert caught.value.retryable
    assert clock.now - began <= 6 + oversleeps_s
    assert len(fake.seen) == 1 if headers else len(fake.seen) > 1


def test_an_endpoint_that_keeps_failing_is_left_alone(clock: FakeClock) -> None:
    """After five failures the circuit opens, for every call through it, and the endpoint hears nothing more."""
    fake = Fake(httpx.Response(500))
    breaker = CircuitBreaker(failures=5, cool_off_s=60, clock=clock.monotonic)
    with pytest.raises(RewardError):
        rank(fake, deadline_s=4, breaker=breaker)
    assert str(breaker.state) == "open"
    asked = len(fake.seen)
    with pytest.raises(RewardError) as caught:
        rank(fake, deadline_s=4, breaker=breaker)
    assert caught.value.code == "circuit_open"
    assert len(fake.seen) == asked <= 5


def test_an_open_circuit_is_waited_for_when_the_deadline_allows(clock: FakeClock) -> None:
    """A call with time left sleeps through the cool-off, probes, and gets its ranking."""
    breaker = CircuitBreaker(failures=1, cool_off_s=3, clock=clock.monotonic)
    breaker.record_failure()
    assert rank(Fake(ok()), breaker=breaker) == [0.0, 0.1, 0.2]
    assert str(breaker.state) == "closed"


def test_our_own_mistakes_do_not_open_the_circuit() -> None:
    """Refusals of a request say nothing about the endpoint's health; wrong answers do."""
    breaker = CircuitBreaker(failures=1)
    with pytest.raises(RewardError):
        rank(Fake(httpx.Response(422)), breaker=breaker)
    assert str(breaker.state) == "closed"
    with pytest.raises(RewardError):
        rank(Fake(httpx.Response(200, html="hello")), breaker=breaker)
    assert str(breaker.state) == "open"


def test_a_pending_ranking_is_polled() -> None:
    """202, 202, 200: the result comes from the Location."""
    fake = Fake(pending(), pending(None), ok())
    assert rank(fake) == [0.0, 0.1, 0.2]
    assert [(request.method, request.url.path) for request in fake.seen] == [
        ("POST", "/v1/rank"),
        ("GET", "/v1/rankings/rank_1"),
        ("GET", "/v1/rankings/rank_1"),
    ]


@pytest.mark.parametrize("location", ["rankings/rank_1", "/v1/rankings/rank_1", "/gate/way/v1/rankings/rank_1"])
def test_a_pending_ranking_is_polled_below_the_endpoints_path(location: str) -> None:
    """Also where the server does not know of the prefix, and says at each look where it believes to be."""
    fake = Fake(pending(location), pending(location), ok())
    with fake.client("http://fake/gate/way") as client:
        client.rank("p", IMAGES, deadline_s=5)
    assert [request.url.path for request in fake.seen[1:]] == ["/gate/way/v1/rankings/rank_1"] * 2


def test_a_pending_ranking_is_cancelled_at_the_deadline(clock: FakeClock) -> None:
    """Nobody waits any more, so the endpoint is told, and the error says timeout."""
    fake, began = Fake(pending()), clock.now
    with pytest.raises(RewardError) as caught:
        rank(fake, deadline_s=5)
    assert 4 < clock.now - began <= 5
    assert caught.value.code == "timeout"
    assert fake.seen[-1].method == "DELETE"


def test_a_million_wrong_results_are_one_error() -> None:
    """What an endpoint answers is bounded in bytes, and so is what its errors cost."""
    answer = ok().json() | {"results": [1] * 1_000_000}
    with pytest.raises(ValidationError) as caught:
        Ranking.model_validate(answer)
    assert caught.value.error_count() == 1


class Endless(httpx.SyncByteStream):
    """A body without an end; counts what is read of it."""

    read = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.read < 1000:
            self.read += 1
            yield b" " * 1000


@pytest.mark.usefixtures("clock")
def test_the_answer_to_a_cancellation_is_not_read() -> None:
    """An endpoint that answers DELETE without end keeps nobody and fills nothing."""
    endless = Endless()

    class Talkative(Fake):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            return httpx.Response(200, stream=endless) if request.method == "DELETE" else answer

    fake = Talkative(pending())
    with pytest.raises(RewardError):
        rank(fake, deadline_s=5)
    assert fake.seen[-1].method == "DELETE"
    assert endless.read == 0


@pytest.mark.parametrize(("status", "code"), [("cancelled", "cancelled"), ("failed", "http_status")])
def test_a_pending_ranking_that_ends_badly_says_so(status: str, code: str) -> None:
    """Cancelled by somebody else, or failed: the reason comes through."""
    reason = {"code": "reward-failed", "message": "out of paint"}
    ended = httpx.Response(200, json={"id": "rank_1", "status": status, "error": reason})
    with pytest.raises(RewardError, match="out of paint") as caught:
        rank(Fake(pending(), ended))
    assert caught.value.code == code


def test_a_restart_that_forgot_a_pending_ranking_is_asked_again() -> None:
    """404 on the Location leads to a new POST with the same key."""
    fake = Fake(pending(), httpx.Response(404), ok())
    assert rank(fake) == [0.0, 0.1, 0.2]
    assert [request.method for request in fake.seen] == ["POST", "GET", "POST"]


def test_without_retries_there_is_one_attempt_and_what_is_pending_stays() -> None:
    """Who schedules alone asks again later: nothing is asked twice, and a passing failure withdraws nothing."""
    fake = Fake(httpx.Response(503, headers={"Retry-After": "7"}))
    for location in (None, "http://fake/v1/rankings/rank_1"):
        with fake.client() as client, pytest.raises(EndpointError) as caught:
            client.rank("p", IMAGES, location=location, poll=False, retry=False)
        assert caught.value.retryable
        assert caught.value.retry_after == 7
    assert [request.method for request in fake.seen] == ["POST", "GET"]


def test_too_many_candidates_are_not_even_sent() -> None:
    """The bound of /v1/info is kept by the client."""
    fake = Fake(ok(), info={"max_candidates": 2})
    with pytest.raises(RewardError) as caught:
        rank(fake)
    assert caught.value.code == "too_large"
    assert not fake.seen


def test_the_key_is_sent_and_urls_are_checked() -> None:
    """The bearer key goes with every request; a URL with another scheme or a password in it is refused."""
    fake = Fake(ok())
    rank(fake, endpoint=Endpoint(url="http://fake", key=SecretStr("a-key-of-some-length")))
    assert fake.seen[0].headers["authorization"] == "Bearer a-key-of-some-length"
    for url in ("file:///etc/passwd", "http://user:password@host", "host:8401"):
        with pytest.raises(InvalidInput):
            RankClient(url)


@contextlib.contextmanager
def raw_server(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server on loopback that does what `behave` does with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                behave(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_hanging_endpoint_ends_with_the_deadline() -> None:
    """A server that accepts and never answers is left at the deadline."""

    def hang(connection: socket.socket) -> None:
        connection.settimeout(60)
        connection.recv(1 << 20)
        connection.recv(1)  # nothing, when the client has hung up

    with raw_server(hang) as url, RankClient(url) as client:
        with pytest.raises(RewardError) as caught:
            client.rank("p", IMAGES, deadline_s=0.7)
        assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    "head", ["content-type: application/json\r\ncontent-length: 100000\r\n\r\n", "x-slow: "], ids=["body", "headers"]
)
def test_a_trickling_endpoint_ends_with_the_deadline(head: str) -> None:
    """One byte now and then, each well before the next is given up, keeps neither a question nor a look for ever."""
    came_to_its_end = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        connection.sendall(f"HTTP/1.1 200 OK\r\n{head}".encode())
        for _ in range(1200):  # until the client hangs up
            connection.sendall(b" ")
            time.sleep(0.05)
        came_to_its_end.set()

    with raw_server(trickle) as url, RankClient(url) as client, pytest.raises(RewardError) as caught:
        client.rank("p", IMAGES, deadline_s=0.5)
    assert caught.value.code in ("timeout", "transport")
    if head.startswith("x-slow"):  # a look reads no body
        with raw_server(trickle) as url, RankClient(url) as client, pytest.raises(RewardError):
            client.probe_readiness(deadline_s=0.5)
    assert not came_to_its_end.is_set()


def test_nobody_listening_is_a_transport_error() -> None:
    """A refused connection is retried until the deadline, then reported as transport."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    patient = CircuitBreaker(failures=1000)
    with RankClient(f"http://127.0.0.1:{port}", breaker=patient) as client, pytest.raises(RewardError) as caught:
        client.rank("p", IMAGES, deadline_s=2)
    assert caught.value.code == "transport"
    assert caught.value.retryable


@pytest.mark.parametrize("location", ["http://[x/", "/v1/rankings/\x01", "/v1/rankings/" + "x" * 70_000])
def test_a_location_that_is_no_url_is_a_wrong_answer(location: str) -> None:
    """It ends the question as every other wrong answer does, in a sentence that stays short."""
    with pytest.raises(RewardError) as caught:
        rank(Fake(pending(location), ok()))
    assert caught.value.code == "invalid_response"
    assert len(str(caught.value)) < 1000


def test_a_wait_without_end_is_no_wait() -> None:
    """A Retry-After of 400 digits counts as absent: what is told of it can be sent as JSON."""
    answer = httpx.Response(503, headers={"Retry-After": "9" * 400})
    with Fake(answer).client() as client, pytest.raises(EndpointError) as caught:
        client.rank("p", IMAGES, retry=False)
    assert caught.value.retry_after is None


def test_a_rank_beyond_all_numbers_is_a_wrong_answer() -> None:
    """A trainer computes with ranks: one of 400 digits is refused by name."""
    answer = ranking(["c0", "c1", "c2"], [None, None, None])
    answer["results"][1]["rank"] = 10**400
    with pytest.raises(RewardError, match=r"results\[1\]\.rank") as caught:
        rank(Fake(httpx.Response(200, json=answer)))
    assert caught.value.code == "invalid_response"


@pytest.mark.parametrize("score", [True, "0.5"])
def test_what_only_looks_like_a_number_is_no_score(score: Any) -> None:
    """A score is a JSON number: neither a word nor a text becomes one."""
    with pytest.raises(RewardError, match=r"results\[1\]\.score") as caught:
        rank(Fake(httpx.Response(200, json=ranking(["c0", "c1", "c2"], [0.5, score, 1]))))
    assert caught.value.code == "invalid_response"


@pytest.mark.parametrize("field", ["detail", "name", "type"])
def test_what_is_said_of_an_endpoint_stays_short(field: str) -> None:
    """However much it says in a reason, in a field's name or as its content type, the message is of a line or two."""
    much = "x" * 50_000
    answers = {
        "detail": httpx.Response(200, json={"id": "r", "status": "failed", "error": {"code": "c", "message": much}}),
        "name": httpx.Response(200, json={**ranking(["c0", "c1", "c2"]), much: 1}),
        "type": httpx.Response(200, content=b"{}", headers={"content-type": f"text/{much}"}),
    }
    first = pending() if field == "detail" else answers[field]
    with pytest.raises(RewardError) as caught:
        rank(Fake(first, answers[field]))
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("media_types", [["image/png"], ["image/png", "application/x-npy"]])
def test_progress_is_sent_to_whoever_wants_it_and_to_nobody_else(media_types: list[str]) -> None:
    """As JSON and as multipart. A server that does not know the field would refuse it."""
    for wants, progress, sent in ((["progress"], 0.25, True), ([], 0.25, False), (["progress"], None, False)):
        fake = Fake(ok(), info={"wants": wants, "media_types": media_types})
        with fake.client() as client:
            client.rank("p", IMAGES, progress=progress)
        assert (b'"progress"' in fake.seen[0].content) is sent
