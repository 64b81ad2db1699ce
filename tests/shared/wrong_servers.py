"""Servers that are wrong in one way each, and right ones of other kinds: the real reward service with one thing bent.

`Bent` stands before the app: it has each request whole, may change it, ask the app, and change the answer. Without a
bend the server is right; with one it breaks the check that `WRONG` names, which says the words given there.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import ssl
import threading
import time
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import SecretStr

from dipole import images
from dipole.conformance import inputs
from dipole_rewards.app import create_app
from dipole_rewards.settings import RewardSettings

KEY = "a-key-of-enough-letters"
MAX_CANDIDATES = 6
MAX_PIXELS = 2**20
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


def mended(asked: Asked, is_bad: Callable[[str], bool]) -> Asked:
    """The request with a good image wherever the data is bad."""
    if not asked.ranks or not asked.candidates():
        return asked
    good = inputs.described(inputs.swatch())
    listed = [{**one, "image": good} if is_bad(str(one["image"].get("data"))) else one for one in asked.candidates()]
    return replace(asked, body=json.dumps({**asked.json, "candidates": listed}).encode())


def is_corrupt(data: str) -> bool:
    try:
        images.decode(base64.b64decode(data, validate=True), "image/png")
    except ValueError:
        return True
    return False


def is_large(data: str) -> bool:
    try:
        images.measure(base64.b64decode(data), "image/png", max_pixels=MAX_PIXELS)
    except images.TooLarge:
        return True
    except ValueError:
        return False
    return False


async def zero_for_corrupt(asked: Asked, forward: Forward) -> Answer:
    """Scores what it cannot decode: 0, and the last rank."""
    answer = await forward(mended(asked, is_corrupt))
    if answer.status != 200 or not asked.ranks or not asked.candidates():
        return answer
    bad = [is_corrupt(str(one["image"].get("data"))) for one in asked.candidates()]
    scores = [0.0 if broken else one["score"] for one, broken in zip(answer.json["results"], bad, strict=True)]
    return changed(answer, results=scored(answer.json["results"], scores))


def scored(found: list[Any], scores: list[float]) -> list[Any]:
    """The results with other scores, and the ranks that belong to them."""
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    return [{**one, "score": score, "rank": rank} for one, score, rank in zip(found, scores, ranks, strict=True)]


async def fetches(asked: Asked, forward: Forward) -> Answer:
    """Looks at a URL before it refuses it."""
    for one in asked.candidates():
        url = str(one["image"].get("data") or one["image"].get("url"))
        if url.startswith("http"):
            with suppress(OSError):
                await asyncio.to_thread(urllib.request.urlopen, url, timeout=2)
    return await forward(asked)


async def calls_back_unsigned(asked: Asked, forward: Forward) -> Answer:
    url = asked.json.get("callback_url") if asked.ranks and isinstance(asked.json, dict) else None
    if not url:
        return await forward(asked)
    with suppress(OSError):
        await asyncio.to_thread(urllib.request.urlopen, url, b"{}", 2)
    return await forward(replace(asked, body=json.dumps({**asked.json, "callback_url": None}).encode()))


async def blocks(asked: Asked, forward: Forward) -> Answer:
    """Scores on the event loop."""
    if asked.ranks:
        time.sleep(0.4)  # the fault
    return await forward(asked)


async def mixes_requests(asked: Asked, forward: Forward) -> Answer:
    """Keeps the request in a global until the model has time."""
    if asked.ranks:
        CACHE["request"] = asked
        await asyncio.sleep(0.05)
        asked = CACHE["request"]
    return await forward(asked)


async def mixes_scores(asked: Asked, forward: Forward) -> Answer:
    """The same with scores: right ids, the images of somebody else."""
    if not asked.ranks or len(asked.candidates()) != 3:
        return await forward(asked)
    CACHE["images"] = [one["image"] for one in asked.candidates()]
    await asyncio.sleep(0.05)
    listed = [{**one, "image": image} for one, image in zip(asked.candidates(), CACHE["images"], strict=True)]
    return await forward(replace(asked, body=json.dumps({**asked.json, "candidates": listed}).encode()))


async def random_scores(asked: Asked, forward: Forward) -> Answer:
    """Another order every time."""
    answer = await forward(asked)
    if not asked.ranks or answer.status != 200:
        return answer
    drawn = [float(uuid.uuid4().int % 10_000) for _ in answer.json["results"]]
    return changed(answer, results=scored(answer.json["results"], drawn))


def first_is_best(found: list[Any]) -> list[Any]:
    """A judge that prefers what it saw first."""
    return scored(found, [-float(index) for index in range(len(found))])


async def never_finishes(asked: Asked, forward: Forward) -> Answer:
    answer = await forward(asked)
    if not asked.path.startswith("/v1/rankings/") or answer.status != 200 or asked.method != "GET":
        return answer
    return reply({"id": answer.json["id"], "status": "pending"}, 202)


async def ignores_cancel(asked: Asked, forward: Forward) -> Answer:
    if asked.method == "DELETE" and "rank_" in asked.path and "authorization" in asked.headers:
        return reply({"id": asked.path.rpartition("/")[2], "status": "cancelled"})
    return await forward(asked)


async def gone_once_read(asked: Asked, forward: Forward) -> Answer:
    answer = await forward(asked)
    if asked.path.startswith("/v1/rankings/") and answer.status == 200:
        if asked.path in CACHE:
            return reply({}, 404)
        CACHE[asked.path] = True
    return answer


def lax(asked: Asked, answer: Answer) -> Answer:
    """Scores whatever it gets: refusals become rankings full of zeros."""
    listed = [{"id": one["id"], "score": 0.0, "rank": 1} for one in asked.candidates()]
    return reply(ranking(listed)) if asked.ranks and listed else answer


def ranking(listed: list[dict[str, Any]]) -> dict[str, Any]:
    known = {"model": "Colourfulness", "model_revision": "1", "recipe_version": "1"}
    return {"id": f"rank_{uuid.uuid4().hex}", "created": 1, **known, "results": listed}


async def lost_in_upload(asked: Asked, forward: Forward) -> Answer:
    """Reads only the JSON of a multipart body."""
    if asked.headers.get("content-type", "").startswith("multipart/"):
        return reply({"detail": "send JSON"}, 415)
    return await forward(asked)


def dies(asked: Asked) -> Asked:
    """After a pickle nothing is ranked any more."""
    CACHE["dead"] = CACHE.get("dead") or b"gif" in asked.body
    return replace(asked, path="/gone", body=b"") if CACHE["dead"] and asked.ranks else asked


# ---- wrong servers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """One fault. `check` fails and says `said`."""

    bend: Bend
    check: str
    said: str
    patient: bool = False
    timeout_s: float = 6
    also: tuple[str, ...] = field(default=())  # checks that run before it


def info(**fields: Any) -> Bend:
    return answers(lambda answer: changed(answer, **fields), path="/v1/info")


def to(path: str, answer: Answer) -> Bend:
    """Always this answer, at one path."""
    return answers(lambda _: answer, path=path, status=None)


def dropped(answer: Answer, name: str) -> Answer:
    return replace(answer, headers={k: v for k, v in answer.headers.items() if k != name})


def quoting(asked: Asked, answer: Answer) -> Answer:
    """A refusal that quotes what it got."""
    return reply({**answer.json, "input": asked.body.decode("latin-1")}, answer.status, "application/problem+json")


def anonymous(_: Asked, answer: Answer) -> Answer:
    return reply({"title": "Bad", "status": answer.status}, answer.status, "application/problem+json")


HTML = reply(b"<h1>hello</h1>", 200, "text/html")
OWN_SHAPE = refusals(lambda _, answer: reply({"error": answer.json["detail"]}, answer.status))

WRONG: dict[str, Wrong] = {
    # what it says of itself
    "never ready": Wrong(to("/readyz", reply({}, 503)), "alive", "/readyz answered 503"),
    "no metrics": Wrong(to("/metrics", reply({}, 404)), "metrics", "/metrics answered 404"),
    "an info of its own": Wrong(to("/v1/info", reply({"name": "x"})), "info", "not a valid RewardInfo: model: "),
    "another version": Wrong(info(protocol_version="2"), "info", "protocol_version is '2'"),
    "no PNG": Wrong(info(media_types=["image/webp"]), "info", "lacks image/png"),
    "more media types than it reads": Wrong(
        answers(lambda _: reply({"detail": "no"}, 415), status=200), "ranks_every_media_type", "answered 415"
    ),
    "no key needed": Wrong(asks(with_key), "key_needed", "without a key answered 200"),
    "any key will do": Wrong(
        asks(lambda asked: with_key(asked) if "authorization" in asked.headers else asked),
        "key_needed",
        "with a wrong key answered 200",
    ),
    "rankings are open": Wrong(
        asks(lambda asked: with_key(asked) if "rankings/" in asked.path else asked),
        "key_needed",
        "GET of a ranking without a key answered",
    ),
    # results
    "ids shuffled": Wrong(results(lambda found: found[::-1]), "ranks_json", "in this order"),
    "a result dropped": Wrong(results(lambda found: found[:-1]), "ranks_json", "results have ids"),
    "an id twice": Wrong(results(lambda found: [found[0]] * len(found)), "ranks_json", "results have ids"),
    "ids of its own": Wrong(each(lambda one: {"id": f"image-{one['id']}"}), "ranks_json", "results have ids"),
    "NaN": Wrong(each(lambda _: {"score": float("nan")}), "ranks_json", "results[0].score: "),
    "a score as text": Wrong(each(lambda one: {"score": str(one["score"]) + " of 10"}), "ranks_json", "valid number"),
    "worst first": Wrong(each(lambda one: {"rank": 4 - one["rank"]}), "ranks_json", "1 is best"),
    "ranks from 0": Wrong(each(lambda one: {"rank": one["rank"] - 1}), "ranks_json", "rank: "),
    "no ranks": Wrong(each(lambda _: {"rank": None}), "ranks_json", "rank None"),
    "ties broken": Wrong(
        results(lambda found: [{**one, "score": 1.0, "rank": index + 1} for index, one in enumerate(found)]),
        "ranks_json",
        "ties share",
    ),
    "dense ranks": Wrong(each(lambda one: {"rank": min(one["rank"], 2)}), "ranks_json", "ties share"),
    "nulls without a reason": Wrong(each(lambda _: {"score": None, "rank": None}), "ranks_json", "must say why"),
    "a score and an error": Wrong(
        each(lambda _: {"error": {"code": "x", "message": "y"}}), "ranks_json", "a score and an error"
    ),
    "ranks alone, calibrated": Wrong(each(lambda _: {"score": None}), "ranks_json", "calibrated: false"),
    "ranks for some": Wrong(
        results(lambda found: [{**found[0], "score": None}, *found[1:]]), "ranks_json", "others have scores"
    ),
    "fields of its own": Wrong(each(lambda _: {"confidence": 1}), "ranks_json", "confidence: Extra inputs"),
    "only nulls": Wrong(
        each(lambda _: {"score": None, "rank": None, "error": {"code": "x", "message": "no face"}}),
        "scores_something",
        "four nulls: no face",
    ),
    "the same image, other scores": Wrong(results(first_is_best), "ties_are_ties", "the same image three times"),
    "prefers the first": Wrong(results(first_is_best), "order_independent", "sent in another order: id-"),
    "dice": Wrong(random_scores, "deterministic", "asked twice: id-"),
    "another revision": Wrong(info(model_revision="2"), "names_its_revision", "model_revision is '1'"),
    # how it answers
    "html": Wrong(to("/v1/rank", HTML), "ranks_json", "text/html"),
    "a content type of its own": Wrong(
        answers(lambda answer: reply(answer.json, kind="text/json")), "ranks_json", "text/json instead"
    ),
    "compressed": Wrong(
        answers(lambda answer: reply(gzip.compress(answer.body), **{"content-encoding": "gzip"})),
        "ranks_json",
        "Content-Encoding gzip",
    ),
    "a redirect": Wrong(
        to("/v1/rank", reply({}, 307, location="http://169.254.169.254/")), "ranks_json", "answered 307"
    ),
    "a huge answer": Wrong(to("/v1/rank", reply(b" " * 5_000_000)), "ranks_json", "more than"),
    "multipart that is not read": Wrong(lost_in_upload, "ranks_multipart", "answered 415"),
    "fewer candidates than it says": Wrong(
        info(max_candidates=MAX_CANDIDATES + 2), "ranks_max_candidates", "answered 413"
    ),
    "images sent back": Wrong(refusals(quoting), "answers_are_short", "a request without prompt: the answer has"),
    "computed again": Wrong(asks(without("idempotency-key")), "idempotent", "the repeat is another answer"),
    # what it refuses
    "scores everything": Wrong(refusals(lax), "refuses_wrong_fields", "no prompt: answered 200"),
    "500 for a bad request": Wrong(
        refusals(lambda _, answer: reply({"detail": "KeyError"}, 500)), "refuses_wrong_fields", "answered 500, not 4xx"
    ),
    "refusals without a name": Wrong(refusals(anonymous), "refuses_wrong_fields", "without naming 'prompt'"),
    "HTML for errors": Wrong(
        refusals(lambda _, answer: replace(HTML, status=answer.status)), "refuses_wrong_fields", "without naming"
    ),
    "misspelt fields are passed over": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b', "surprise": 1', b""))),
        "refuses_unknown_fields",
        "an unknown field: answered 200",
    ),
    "500 for no JSON": Wrong(
        refusals(lambda asked, answer: answer if asked.json else reply({}, 500)), "refuses_what_is_not_json", "500"
    ),
    "lenient base64": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b"!?", b""))),
        "refuses_bad_base64",
        "base64 with junk in it: answered 200",
    ),
    "fetches URLs": Wrong(fetches, "never_fetches", "was fetched: b'GET /a.png"),
    "callbacks to anybody": Wrong(calls_back_unsigned, "callbacks_are_signed", "without webhook-signature"),
    "guesses media types": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b"image/svg+xml", b"image/png"))),
        "refuses_unknown_media_type",
        "calls itself SVG: answered 200",
    ),
    "0 for a corrupt image": Wrong(zero_for_corrupt, "makes_up_no_scores", "nothing got the score"),
    "accepts huge images": Wrong(
        asks(lambda asked: mended(asked, is_large)), "refuses_huge_images", "too many pixels: answered 200"
    ),
    "max_candidates is but a word": Wrong(
        info(max_candidates=3), "refuses_too_many", "too many candidates: answered 2"
    ),
    "unpickles": Wrong(
        refusals(lambda asked, answer: reply({}, 500) if b"x-npy" in asked.body else answer), "refuses_pickles", "500"
    ),
    "waits for a terabyte": Wrong(straight, "refuses_huge_bodies", "no answer within", patient=True, timeout_s=3),
    "any ranking is pending": Wrong(
        refusals(lambda asked, answer: reply({"id": "x"}, 202) if "/v1/rankings/" in asked.path else answer),
        "unknown_rankings",
        "answered 202, not 404",
    ),
    "500 for HEAD": Wrong(
        answers(lambda answer: replace(answer, status=500), path="/v1/rank", status=405), "survives_odd_methods", "500"
    ),
    "errors in a shape of its own": Wrong(OWN_SHAPE, "problem_json", "not application/problem+json"),
    # many at once, and later
    "answers of another request": Wrong(mixes_requests, "concurrent", "results have ids"),
    "scores of another request": Wrong(mixes_scores, "same_scores_under_load", "asked alone, then with others"),
    "503 without a word": Wrong(to("/v1/rank", reply({}, 503)), "concurrent", "503 without Retry-After"),
    "blocks while scoring": Wrong(blocks, "healthy_under_load", "/livez answered 200 after"),
    "202 without Location": Wrong(
        answers(lambda answer: dropped(answer, "location"), status=202), "pending_finishes", "Location None"
    ),
    "a Location elsewhere": Wrong(
        answers(lambda answer: replace(answer, headers={**answer.headers, "location": "http://x/"}), status=202),
        "pending_finishes",
        "not on this endpoint",
    ),
    "a Location that is none": Wrong(
        answers(lambda answer: replace(answer, headers={**answer.headers, "location": "http://["}), status=202),
        "pending_finishes",
        "not on this endpoint",
    ),
    "never finishes": Wrong(
        never_finishes, "pending_finishes", "though it answers plain requests at once", timeout_s=2
    ),
    "another id when finished": Wrong(
        answers(lambda answer: changed(answer, id="rank_1"), path="/v1/rankings/"), "pending_finishes", "the 202 said"
    ),
    "gone once read": Wrong(gone_once_read, "pending_finishes", "once read, the ranking is gone"),
    "no Retry-After": Wrong(
        answers(lambda answer: dropped(answer, "retry-after"), status=202), "pending_says_when", "without Retry-After"
    ),
    "cancel ignored": Wrong(ignores_cancel, "pending_can_be_cancelled", "PendingRanking"),
    "dead after a GIF": Wrong(asks(dies), "still_alive", "to a valid request", also=("refuses_unknown_media_type",)),
}


# ---- right servers of other kinds -------------------------------------------------------------------------------


async def only_ranks(asked: Asked, forward: Forward) -> Answer:
    """People and judges of pairs: an order without scores, which /v1/info says."""
    if asked.path == "/v1/info":
        return await info(calibrated=False)(asked, forward)
    return await each(lambda _: {"score": None})(asked, forward)


async def needs_metadata(asked: Asked, forward: Forward) -> Answer:
    """Scores nothing without metadata, and says so: as GenEval does."""
    sent = asked.json or (b'"metadata": {' in asked.body and {"metadata": True})
    if asked.ranks and not (isinstance(sent, dict) and sent.get("metadata")):
        error = {"code": "missing_metadata", "message": "needs metadata.include"}
        return await each(lambda _: {"score": None, "rank": None, "error": error})(asked, forward)
    return await forward(asked)


async def always_later(asked: Asked, forward: Forward) -> Answer:
    """Answers every ranking with 202, soon."""
    if asked.ranks:
        asked = replace(asked, headers={**asked.headers, "prefer": "respond-async"})
    answer = await forward(asked)
    if answer.status == 202:
        answer = replace(answer, headers={**answer.headers, "retry-after": "0"})
    return answer


async def people(asked: Asked, forward: Forward) -> Answer:
    """Answers every ranking with 202, and not today."""
    name = asked.path.removeprefix("/v1/rankings/")
    if asked.method == "DELETE" and name.startswith("rank_") and "authorization" in asked.headers:
        CACHE[name] = reply({"id": name, "status": "cancelled"})
    if name in CACHE and "authorization" in asked.headers:
        return CACHE[name]
    return await never_finishes(asked, lambda one: always_later(one, forward))


async def in_other_words(asked: Asked, forward: Forward) -> Answer:
    """Problems that name fields in `errors` alone, and as a JSON pointer."""
    answer = await forward(asked)
    if not asked.ranks or not 400 <= answer.status < 500 or answer.status == 401:
        return answer
    listed = answer.json.get("errors") or []
    pointers = [{**error, "field": error["field"].replace("[", ".").replace("]", "")} for error in listed]
    doubled = "unique" in answer.json["detail"]
    told = [{"field": "candidates.2.id", "message": "seen before"}] if doubled else pointers
    return reply({**answer.json, "detail": "not accepted", "errors": told}, answer.status, "application/problem+json")


async def small(asked: Asked, forward: Forward) -> Answer:
    """What a server of twenty lines leaves out: good manners, and nothing else."""
    if asked.path == "/v1/info":
        return await info(multipart=False)(asked, forward)
    if asked.path == "/metrics" or asked.path.startswith("/v1/rankings/"):
        return reply(b"Not Found", 404, "text/plain")
    plain = without("prefer", "idempotency-key")(asked)
    return await OWN_SHAPE(replace(plain, body=plain.body.replace(b', "surprise": 1', b"")), forward)
