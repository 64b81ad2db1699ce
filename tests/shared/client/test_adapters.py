"""vLLM's and UniRL's /score and Flow-Factory's /compute through the one client, over real HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from dipole.client.adapters import EndpointKind
from dipole.client.circuit_breaker import CircuitBreaker
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.errors import InvalidInput
from dipole.protocol import images
from dipole.protocol.schemas import Ranking

IMAGES = [np.full((6, 4, 3), 50 * index, np.uint8) for index in range(3)]
KEY = "a-key/of-enough-letters"
Body = Callable[[dict[str, Any]], Any]
OPTIONS: dict[EndpointKind, dict[str, Any]] = {
    "vllm-score": {"model": "judge-2b", "revision": "r7"},
    "unirl-score": {"reward": "hpsv3", "revision": "r7"},
    "flow-factory-compute": {"model": "brightness", "revision": "r7"},
}
SCORE_PATHS = ("/score", "/compute")


@dataclass
class Server:
    """Answers GETs from `pages` and every POST to a path of scores with what `score` makes of its body."""

    score: Body
    pages: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    content_type: str = "application/json"
    url: str = ""
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(200 if self.path in server.pages else 404, server.pages.get(self.path, {}), None)

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.respond(server.status if self.path in SCORE_PATHS else 404, server.score(said), said)

        def respond(self, status: int, answer: Any, said: Any) -> None:
            server.asked.append((self.path, dict(self.headers.items()), said))
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", server.content_type if self.path in SCORE_PATHS else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client hangs up on what is too large
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    yield server
    http.shutdown()
    http.server_close()
    thread.join(5)


def vllm(scores: list[Any], **changes: Any) -> Body:
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    answer = {"id": "score-1", "object": "list", "created": 1, "model": "judge-2b", "data": data, "usage": {}}
    return lambda _: {**answer, **changes}


def unirl(scores: list[Any], **changes: Any) -> Body:
    def answer(said: dict[str, Any]) -> dict[str, Any]:
        return {
            "results": [{"hpsv3": {"hpsv3": score}} for score in scores],
            "errors": [{} for _ in scores],
            "identities": [{"request_id": each["request_id"], "scorer_version": "v9"} for each in said["requests"]],
            "protocol_version": "1",
            **changes,
        }

    return answer


def flow_factory(scores: list[Any], **changes: Any) -> Body:
    """As RewardServer of example_server.py answers (X-GenGroup/Flow-Factory at a0b2bc5)."""
    return lambda _: {"rewards": scores, **changes}


PAGES = {
    "/health": {"status": "ok", "rewards": {"hpsv3": ["ready"]}},
    "/v1/models": {"object": "list", "data": [{"id": "judge-2b", "object": "model", "owned_by": "vllm"}]},
    "/rewards": {"rewards": ["clip", "hpsv3"]},
}
SCORES: dict[EndpointKind, Callable[..., Body]] = {
    "vllm-score": vllm,
    "unirl-score": unirl,
    "flow-factory-compute": flow_factory,
}
KINDS: list[EndpointKind] = ["vllm-score", "unirl-score", "flow-factory-compute"]


def ask(
    kind: EndpointKind, score: Body, options: dict[str, Any] | None = None, **server: Any
) -> tuple[Ranking, list[tuple[str, dict[str, str], Any]]]:
    chosen = OPTIONS[kind] if options is None else options
    client: dict[str, Any] = {name: server.pop(name) for name in ("breaker", "max_answer_bytes") if name in server}
    with serving(Server(score, **{"pages": PAGES, **server})) as running:
        endpoint = Endpoint(url=running.url, kind=kind, options=chosen, key=SecretStr(KEY))
        with RankClient(endpoint, **client) as ranker:
            ranking = ranker.rank("a red square", IMAGES, {"tag": "x"}, idempotency_key="q1", deadline_s=10)
    return ranking, running.asked


def refused(kind: EndpointKind, score: Body, **server: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        ask(kind, score, **server)
    return caught.value


# ---- what is right ----------------------------------------------------------------------------------------------


def sent(png: str) -> np.ndarray[Any, Any]:
    return images.decode_image(base64.b64decode(png), "image/png")


def test_vllm_gets_one_query_and_k_documents_and_its_scores_become_a_ranking() -> None:
    """1×N with PNG data: URIs, the registered model by name, the key as bearer; ties share a rank."""
    ranking, asked = ask("vllm-score", vllm([0.25, 0.75, 0.25], usage={"prompt_tokens": 9}))
    assert [(item.id, item.score, item.rank) for item in ranking.results] == [
        ("c0", 0.25, 2), ("c1", 0.75, 1), ("c2", 0.25, 2),
    ]  # fmt: skip
    assert (ranking.model, ranking.model_revision, ranking.recipe_version) == ("judge-2b", "r7", "vllm-score/1")
    assert ranking.usage == {"prompt_tokens": 9}
    path, headers, said = asked[-1]
    assert (path, headers["Authorization"]) == ("/score", f"Bearer {KEY}")
    assert (said["model"], said["queries"], set(said)) == (
        "judge-2b",
        "a red square",
        {"model", "queries", "documents"},
    )
    for document, image in zip(said["documents"], IMAGES, strict=True):
        (part,) = document["content"]
        assert part["type"] == "image_url"
        head, _, png = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(sent(png), image)


def test_unirl_gets_a_request_an_image_and_its_metric_becomes_the_score() -> None:
    """The registered reward is asked; metadata and ids go along; its own scorer version is kept as the revision."""
    ranking, asked = ask("unirl-score", unirl([1, 3.5, 2]))
    assert [(item.score, item.rank) for item in ranking.results] == [(1.0, 3), (3.5, 1), (2.0, 2)]
    assert (ranking.model, ranking.model_revision, ranking.recipe_version) == ("hpsv3", "v9", "unirl-score/1")
    assert ranking.results[1].sub_scores == {"hpsv3": 3.5}
    said = asked[-1][2]
    assert said["protocol_version"] == "1"
    assert [each["request_id"] for each in said["requests"]] == ["c0", "c1", "c2"]
    assert len({each["idempotency_key"] for each in said["requests"]}) == 3
    for each, image in zip(said["requests"], IMAGES, strict=True):
        assert (each["required_rewards"], each["metadata"]) == (["hpsv3"], {"tag": "x"})
        (turn,) = each["history"]
        assert turn["text"] == "a red square"
        assert np.array_equal(sent(turn["image_b64"]), image)


def test_flow_factory_gets_lists_of_prompts_and_images_and_its_rewards_become_a_ranking() -> None:
    """The fields that their own client sends, and no others; model and revision are the registered ones."""
    ranking, asked = ask("flow-factory-compute", flow_factory([1, 3.5, 2]))
    assert [(item.id, item.score, item.rank) for item in ranking.results] == [
        ("c0", 1, 3),
        ("c1", 3.5, 1),
        ("c2", 2, 2),
    ]
    assert (ranking.model, ranking.model_revision) == ("brightness", "r7")
    path, headers, said = asked[-1]
    assert (path, headers["Authorization"], asked[0][0]) == ("/compute", f"Bearer {KEY}", "/health")
    assert said.pop("prompt") == ["a red square"] * 3
    assert all(np.array_equal(sent(png), image) for png, image in zip(said.pop("image"), IMAGES, strict=True))
    assert said == {"video": None, "condition_images": None, "condition_videos": None}


def test_what_unirl_cannot_score_is_null_with_the_reason() -> None:
    """A failed image has its error, a metric that was no number another; the rest keep their ranks."""
    results = [{"hpsv3": {"hpsv3": 2.0}}, {}, {"hpsv3": {"hpsv3": None}}]
    errors = [{}, {"hpsv3": "RuntimeError('out of memory')"}, {}]
    ranking, _ = ask("unirl-score", unirl([0, 0, 0], results=results, errors=errors))
    assert [(item.score, item.rank) for item in ranking.results] == [(2.0, 1), (None, None), (None, None)]
    assert [item.error and item.error.code for item in ranking.results] == [None, "reward-failed", "not-finite"]
    assert ranking.results[1].error is not None
    assert "out of memory" in ranking.results[1].error.message


def test_a_unirl_reward_of_many_metrics_needs_one_named() -> None:
    """The one named as the reward is taken, another when options.metric says so, and nothing is guessed."""
    parts = {"alignment": 1.0, "style": 4.0}
    many = unirl([0, 0, 0], results=[{"hpsv3": parts}] * 3)
    ranking, _ = ask("unirl-score", many, {"reward": "hpsv3", "metric": "style"})
    assert [item.score for item in ranking.results] == [4.0] * 3
    assert ranking.results[0].sub_scores == parts
    error = refused("unirl-score", many)
    assert error.code == "invalid_response"
    assert "alignment, style" in str(error)
    named = unirl([0, 0, 0], results=[{"hpsv3": {**parts, "hpsv3": 9.0}}] * 3)
    assert ask("unirl-score", named)[0].results[0].score == 9.0


def test_a_unirl_service_from_before_identities_is_understood() -> None:
    """Results and errors alone are an answer; the revision is then the registered one."""
    old = unirl([1, 2, 3])
    ranking, _ = ask("unirl-score", lambda said: {name: old(said)[name] for name in ("results", "errors")})
    assert [item.score for item in ranking.results] == [1, 2, 3]
    assert ranking.model_revision == "r7"


def test_without_a_registered_model_vllm_is_asked_for_its_first() -> None:
    """And a model that it does not serve is told before any image is sent."""
    ranking, asked = ask("vllm-score", vllm([1, 2, 3]), {})
    assert (asked[-1][2]["model"], ranking.model_revision) == ("judge-2b", "unknown")
    error = refused("vllm-score", vllm([1, 2, 3]), options={"model": "other"})
    assert "serves judge-2b, not other" in str(error)
    error = refused("unirl-score", unirl([1, 2, 3]), options={"reward": "wise"})
    assert "offers clip, hpsv3, not wise" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_on_candidates_is_kept_before_anything_is_sent(kind: EndpointKind) -> None:
    """options.max_candidates is the endpoint's: more are too_large, and no POST is made."""
    with serving(Server(SCORES[kind]([1, 2, 3]), pages=PAGES)) as running:
        endpoint = Endpoint(url=running.url, kind=kind, options={**OPTIONS[kind], "max_candidates": 2})
        with RankClient(endpoint) as client, pytest.raises(EndpointError) as caught:
            client.rank("p", IMAGES, deadline_s=5)
    assert caught.value.code == "too_large"
    assert not any(path in SCORE_PATHS for path, _, _ in running.asked)


# ---- what is wrong ----------------------------------------------------------------------------------------------

RIGHT = vllm([1, 2, 3])({})["data"]
WRONG: list[tuple[str, EndpointKind, Body, str]] = [
    ("too few", "vllm-score", vllm([1, 2]), "invalid_response"),
    ("too many", "vllm-score", vllm([1, 2, 3, 4]), "invalid_response"),
    ("index twice", "vllm-score", vllm([], data=[RIGHT[0], RIGHT[1], RIGHT[1]]), "invalid_response"),
    ("another index", "vllm-score", vllm([], data=[*RIGHT[:2], {**RIGHT[2], "index": 7}]), "invalid_response"),
    ("index below", "vllm-score", vllm([], data=[*RIGHT[:2], {**RIGHT[2], "index": -1}]), "invalid_response"),
    ("another order", "vllm-score", vllm([], data=RIGHT[::-1]), "invalid_response"),
    ("index as text", "vllm-score", vllm([], data=[{**each, "index": str(each["index"])} for each in RIGHT]),
     "invalid_response"),
    ("scores as text", "vllm-score", vllm(["1", "2", "3"]), "invalid_response"),
    ("true for a score", "vllm-score", vllm([True, 2, 3]), "invalid_response"),
    ("null", "vllm-score", vllm([None, 2, 3]), "invalid_response"),
    ("a list", "vllm-score", vllm([[1], [2], [3]]), "invalid_response"),
    ("nan", "vllm-score", vllm([1, float("nan"), 3]), "not_finite"),
    ("infinity", "vllm-score", vllm([1, float("-inf"), 3]), "not_finite"),
    ("too few", "unirl-score", unirl([1, 2]), "invalid_response"),
    ("too many", "unirl-score", unirl([1, 2, 3, 4]), "invalid_response"),
    ("errors of others", "unirl-score", unirl([1, 2, 3], errors=[{}]), "invalid_response"),
    ("ids of others", "unirl-score", unirl([1, 2, 3], identities=[{"request_id": "x"}] * 3), "invalid_response"),
    ("one id twice", "unirl-score", unirl([1, 2, 3], identities=[{"request_id": f"c{k}"} for k in (0, 1, 1)]),
     "invalid_response"),
    ("neither score nor error", "unirl-score", unirl([1, 2, 3], results=[{}, {}, {}]), "invalid_response"),
    ("another reward", "unirl-score", unirl([1, 2, 3], results=[{"clip": {"clip": 1}}] * 3), "invalid_response"),
    ("no metric", "unirl-score", unirl([1, 2, 3], results=[{"hpsv3": {}}] * 3), "invalid_response"),
    ("a number for metrics", "unirl-score", unirl([1, 2, 3], results=[{"hpsv3": 1}] * 3), "invalid_response"),
    ("scores as text", "unirl-score", unirl(["1", "2", "3"]), "invalid_response"),
    ("another protocol", "unirl-score", unirl([1, 2, 3], protocol_version="2"), "invalid_response"),
    ("nan", "unirl-score", unirl([1, float("nan"), 3]), "not_finite"),
    ("too few", "flow-factory-compute", flow_factory([1, 2]), "invalid_response"),
    ("too many", "flow-factory-compute", flow_factory([1, 2, 3, 4]), "invalid_response"),
    ("one number", "flow-factory-compute", flow_factory([], rewards=3.0), "invalid_response"),
    ("scores as text", "flow-factory-compute", flow_factory(["1", "2", "3"]), "invalid_response"),
    ("true for a score", "flow-factory-compute", flow_factory([True, 2, 3]), "invalid_response"),
    ("null", "flow-factory-compute", flow_factory([1, None, 3]), "invalid_response"),
    ("a list", "flow-factory-compute", flow_factory([[1], [2], [3]]), "invalid_response"),
    ("an error beside scores", "flow-factory-compute", flow_factory([1, 2, 3], error="half"), "invalid_response"),
    ("nan", "flow-factory-compute", flow_factory([1, float("nan"), 3]), "not_finite"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "score", "code"), [row[1:] for row in WRONG], ids=[f"{kind}: {what}" for what, kind, *_ in WRONG]
)
def test_whatever_is_not_a_score_of_each_image_in_order_is_refused(kind: EndpointKind, score: Body, code: str) -> None:
    """One attempt, a code, and no number made up; only what is not finite leaves the endpoint's circuit alone."""
    breaker = CircuitBreaker(failures=1, cool_off_s=60)
    error = refused(kind, score, breaker=breaker)
    assert (error.code, error.retryable) == (code, False)
    closed = code == "not_finite" or "register one as options.metric" in str(error)
    assert breaker.state == ("closed" if closed else "open")


SAME: list[tuple[str, EndpointKind, Body]] = [
    ("usage null", "vllm-score", vllm([1, 2, 3], usage=None)),
    ("usage of text", "vllm-score", vllm([1, 2, 3], usage="none")),
    ("nothing but scores", "vllm-score", lambda _: {"data": RIGHT}),
    ("odd names", "vllm-score", vllm([1, 2, 3], id=7, created="today", model=None, object=None)),
    ("a fraction of a second", "vllm-score", vllm([1, 2, 3], created=1.5)),
    ("other fields", "vllm-score", vllm([1, 2, 3], data=[{**each, "object": None, "text": [1]} for each in RIGHT])),
    ("nulls for lists", "unirl-score", unirl([1, 2, 3], errors=None, identities=None, protocol_version=None)),
    ("nulls in lists", "unirl-score", unirl([1, 2, 3], errors=[None] * 3, identities=[None] * 3)),
    ("a number for a version", "unirl-score", unirl([1, 2, 3], protocol_version=1)),
    ("identities without ids", "unirl-score", unirl([1, 2, 3], identities=[{"scorer_version": 9}] * 3)),
    ("other rewards' results", "unirl-score",
     unirl([], errors=[{}] * 3, results=[{"clip": "off", "hpsv3": {"hpsv3": k}} for k in (1, 2, 3)])),
    ("metrics that are no numbers", "unirl-score",
     unirl([], errors=[{}] * 3,
           results=[{"hpsv3": {"hpsv3": k, "why": "blurred", "x": [1], "y": None, "z": True}} for k in (1, 2, 3)])),
    ("other fields", "flow-factory-compute", flow_factory([1, 2, 3], error=None, seconds="0.1")),
    ("errors of other rewards", "unirl-score", unirl([1, 2, 3], errors=[{"clip": {"type": "x"}}, {"hpsv3": None}, {}])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "score"), [row[1:] for row in SAME], ids=[f"{row[1]}: {row[0]}" for row in SAME])
def test_only_what_is_used_of_an_answer_must_be_right(kind: EndpointKind, score: Body) -> None:
    """Whatever stands beside the scores may be absent, null or of any type."""
    ranking, _ = ask(kind, score)
    assert [(item.score, item.rank) for item in ranking.results] == [(1, 3), (2, 2), (3, 1)]
    assert (ranking.model, ranking.created > 0) == (OPTIONS[kind].get("model", "hpsv3"), True)
    assert all(set(item.sub_scores or ()) <= {"hpsv3"} for item in ranking.results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "said",
    [
        {"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404},
        {"error": {"message": "no such model"}},
        {"error": "no such model"},
        {"detail": [{"loc": ["body", "model"], "msg": "no such model"}]},
    ],
)
def test_an_error_is_told_in_the_servers_words(kind: EndpointKind, said: dict[str, Any]) -> None:
    """Wherever they stand, also where the error comes with status 200."""
    for status in (200, 400):
        error = str(refused(kind, lambda _: said, status=status))
        assert "no such model" in error
        assert "{" not in error


@pytest.mark.parametrize("kind", KINDS)
def test_html_and_huge_answers_and_other_states_are_refused(kind: EndpointKind) -> None:
    """The same bounds as for Dipole's own protocol: type, size, JSON, status."""
    fine = SCORES[kind]([1, 2, 3])
    assert refused(kind, lambda _: b"<h1>hello</h1>", content_type="text/html").code == "invalid_response"
    assert refused(kind, lambda _: b"{").code == "invalid_response"
    assert refused(kind, lambda _: b" " * 9000, max_answer_bytes=8000).code == "too_large"
    assert refused(kind, fine, status=202).code == "invalid_response"
    redirect = refused(kind, fine, status=307)
    assert (redirect.code, "redirect" in str(redirect)) == ("invalid_response", True)
    unauthorised = refused(kind, lambda _: {"error": {"message": "no such key"}}, status=401)
    assert (unauthorised.code, unauthorised.http_status) == ("http_status", 401)
    assert "401: no such key" in str(unauthorised)


def test_an_endpoint_that_repeats_its_key_is_not_quoted() -> None:
    """Neither in a refusal, nor as a candidate's error, nor in what the client prints of itself."""
    error = refused("vllm-score", lambda _: {"detail": f"bad token {KEY}"}, status=403)
    assert "bad token ***" in str(error)
    escaped = KEY.replace("/", "\\/")  # as PHP writes it
    error = refused("vllm-score", lambda _: b'{"detail": "bad token %s"}' % escaped.encode(), status=403)
    assert "bad token ***" in str(error)
    errors = [{"hpsv3": f"Unauthorized('{KEY}')"}] * 3
    ranking, _ = ask("unirl-score", unirl([0, 0, 0], results=[{}] * 3, errors=errors))
    assert KEY not in ranking.model_dump_json()
    endpoint = Endpoint(url="http://127.0.0.1:1", key=SecretStr(KEY))
    assert KEY not in repr(endpoint) + str(endpoint) + endpoint.model_dump_json() + repr(vars(RankClient(endpoint)))


def test_a_passing_failure_is_tried_again() -> None:
    """Retries are the client's and the same for every kind."""
    server = Server(vllm([1, 2, 3]), pages=PAGES, status=503)

    def recover(said: dict[str, Any]) -> Any:
        server.status = 200
        return vllm([1, 2, 3])(said)

    server.score = recover
    with serving(server), RankClient(Endpoint(url=server.url, kind="vllm-score")) as client:
        assert [item.score for item in client.rank("p", IMAGES, deadline_s=10).results] == [1, 2, 3]
    assert sum(path == "/score" for path, _, _ in server.asked) == 2


# ---- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "unirl-score"}, "options.reward"),
        ({"kind": "unirl-score", "options": {"reward": ""}}, "options.reward"),
        ({"kind": "vllm-score", "options": {"modl": "x"}}, "options.modl"),
        ({"kind": "vllm-score", "options": {"max_candidates": 65}}, "options.max_candidates"),
        ({"options": {"model": "x"}}, "options.model"),
        ({"kind": "tgi"}, "kind"),
        ({"tls": "../etc"}, "tls"),
        ({"tls": "team"}, "tls"),
        ({"key": "two\nlines"}, "key"),
    ],
)
def test_a_wrong_description_names_its_field(values: dict[str, Any], field: str) -> None:
    """What a kind does not take, what it needs, names that could leave their folder, certificates without https."""
    with pytest.raises(InvalidInput) as caught:
        Endpoint.from_values({"url": "http://127.0.0.1:1", **values})
    assert caught.value.field == field
    assert field.rpartition(".")[2] in str(caught.value)
    with pytest.raises(ValidationError):
        Endpoint(**{"url": "http://127.0.0.1:1", **values})
