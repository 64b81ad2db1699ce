"""`dipole rewards check` finds what is wrong with an endpoint. The wrong servers are a right one, bent in one place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio.from_thread
import httpx
import pytest
from typer.testing import CliRunner

from dipole import conformance
from dipole.cli.rewards import app as rewards_cli
from dipole.conformance_checks import CHECKS
from dipole.errors import InvalidInput
from dipole_rewards.app import create_app
from dipole_rewards.settings import RewardSettings

Bend = Callable[[httpx.Request, httpx.Response], httpx.Response]


class InThread(httpx.BaseTransport):
    """The real app behind a synchronous transport; `bend` may change each answer on its way out."""

    def __init__(self, app: Any, portal: anyio.from_thread.BlockingPortal) -> None:
        self._inner, self._portal = httpx.ASGITransport(app), portal
        self.bend: Bend = lambda _, answer: answer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = self.bend(request, self._portal.call(self._ask, request))
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        return answer


@pytest.fixture(scope="module")
def endpoint() -> Iterator[InThread]:
    app = create_app(
        RewardSettings(reward="dipole_rewards.rewards.colourfulness:Colourfulness", reward_max_candidates=6)
    )
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        transport = InThread(app, portal)
        with httpx.Client(transport=transport, base_url="http://reward") as client:
            while client.get("/readyz").status_code != 200:
                pass
        yield transport


def outcomes(endpoint: InThread, bend: Bend, *only: str) -> dict[str, str]:
    """Failed checks and what they say."""
    endpoint.bend = bend
    results = conformance.run("http://reward", transport=endpoint, timeout_s=5, only=only)
    assert len(results) == (len(only) or len(CHECKS))
    return {result.name: result.message for result in results if result.outcome == "failed"}


def changed(answer: httpx.Response, change: Callable[[Any], Any]) -> httpx.Response:
    document = json.loads(answer.content)
    kind = {"content-type": answer.headers["content-type"]}
    if answer.headers.get("location"):
        kind |= {"location": answer.headers["location"], "retry-after": answer.headers["retry-after"]}
    return httpx.Response(answer.status_code, content=json.dumps(change(document)), headers=kind)


def results(change: Callable[[list[Any]], Any]) -> Bend:
    """Bend the results of every 200 to a ranking request."""

    def bend(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.url.path != "/v1/rank" or answer.status_code != 200:
            return answer
        return changed(answer, lambda document: {**document, "results": change(document["results"])})

    return bend


def only(path: str, answer: httpx.Response) -> Bend:
    return lambda request, right: answer if request.url.path == path else right


def fresh_ids(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200 or request.url.path != "/v1/rank":
        return answer
    fresh_ids.count += 1  # type: ignore[attr-defined]
    return changed(answer, lambda document: {**document, "id": f"rank_{fresh_ids.count}"})  # type: ignore[attr-defined]


fresh_ids.count = 0  # type: ignore[attr-defined]


def lax(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """A server that scores whatever it gets: refusals become rankings full of zeros."""
    if request.url.path != "/v1/rank" or answer.status_code != 422:
        return answer
    try:
        ids = [candidate["id"] for candidate in json.loads(request.content)["candidates"]]
    except (ValueError, KeyError, TypeError):
        return answer
    ranking = {
        "id": "r", "created": 1, "model": "m", "model_revision": "1", "recipe_version": "1",
        "results": [{"id": name, "score": 0.0, "rank": 1} for name in ids],
    }  # fmt: skip
    return httpx.Response(200, json=ranking)


WRONG: dict[str, tuple[Bend, str, str]] = {
    "wrong count": (results(lambda all_: all_[:-1]), "ranks_json", "results have ids"),
    "wrong order": (results(lambda all_: all_[::-1]), "ranks_json", "in this order"),
    "duplicate ids": (results(lambda all_: [all_[0]] * len(all_)), "ranks_json", "results have ids"),
    "NaN": (results(lambda all_: [{**one, "score": float("nan")} for one in all_]), "ranks_json", "finite number"),
    "worst first": (
        results(lambda all_: [{**one, "rank": 4 - one["rank"]} for one in all_]),
        "ranks_json",
        "1 is best",
    ),
    "dense ranks": (
        results(lambda all_: [{**one, "rank": 1 if one["rank"] == 1 else 2} for one in all_]),
        "ties_share_a_rank",
        "ties share",
    ),
    "0 for null": (
        results(lambda all_: [{**one, "score": None} for one in all_]),
        "ranks_json",
        "its rank must be null",
    ),
    "html": (only("/v1/rank", httpx.Response(200, html="<h1>hello</h1>")), "ranks_json", "text/html"),
    "no metrics": (only("/metrics", httpx.Response(404)), "alive", "/metrics answered 404"),
    "wrong info": (only("/v1/info", httpx.Response(200, json={"name": "x"})), "info", "not a valid RewardInfo"),
    "redirect": (
        only("/v1/rank", httpx.Response(307, headers={"location": "http://169.254.169.254/"})),
        "ranks_json",
        "answered 307",
    ),
    "huge answer": (only("/v1/rank", httpx.Response(200, content=b" " * 5_000_000)), "ranks_json", "more than"),
    "no idempotency": (fresh_ids, "idempotent", "another ranking"),
    "scores everything": (lax, "survives_corrupt_images", "got the score"),
    "500 for a bad request": (
        lambda _, answer: httpx.Response(500) if answer.status_code == 422 else answer,
        "refuses_wrong_fields",
        "answered 500, not 4xx",
    ),
    "errors in a shape of its own": (
        lambda _, answer: (
            httpx.Response(answer.status_code, json={"error": "bad"}) if answer.is_client_error else answer
        ),
        "refuses_bad_base64",
        "not application/problem+json",
    ),
    "foreign location": (
        lambda _, answer: (
            httpx.Response(202, content=answer.content, headers={**answer.headers, "location": "http://x/"})
            if answer.status_code == 202
            else answer
        ),
        "pending_finishes",
        "not on this endpoint",
    ),
}


def test_the_right_endpoint_passes(endpoint: InThread) -> None:
    """Our own service passes every check."""
    assert outcomes(endpoint, lambda _, answer: answer) == {}


def in_other_words(_: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """A right endpoint with sentences of its own: it names fields in `errors` alone, and a doubled id by its place."""
    if not answer.is_client_error:
        return answer
    problem = json.loads(answer.content)
    doubled = "unique" in problem["detail"]
    errors = [{"field": "candidates[1].id", "message": "seen before"}] if doubled else problem.get("errors", [])
    told = {**problem, "detail": "request was not accepted", "errors": errors}
    return httpx.Response(answer.status_code, headers={"content-type": "application/problem+json"}, json=told)


def test_a_right_endpoint_may_use_its_own_words(endpoint: InThread) -> None:
    """A field is named when `errors` names it, whatever the sentence says, and at whatever depth."""
    refusals = [check.__name__ for check in CHECKS if check.__name__.startswith(("refuses_", "survives_"))]
    assert outcomes(endpoint, in_other_words, *refusals) == {}


@pytest.mark.parametrize(("bend", "check", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_endpoint_is_found_out(endpoint: InThread, bend: Bend, check: str, said: str) -> None:
    """The check that states the broken fact fails, and says what it saw."""
    failed = outcomes(endpoint, bend, check)
    assert said in failed[check]


def test_an_endpoint_that_hangs_costs_a_few_timeouts(endpoint: InThread) -> None:
    """After three checks without any answer the rest is skipped."""

    def hang(request: httpx.Request, _: httpx.Response) -> httpx.Response:
        raise httpx.ReadTimeout("nothing came", request=request)

    endpoint.bend = hang
    found = [result.outcome for result in conformance.run("http://reward", transport=endpoint)]
    assert found.count("failed") == conformance.PATIENCE
    assert "passed" not in found


def test_the_command_exits_with_1_and_writes_junit(tmp_path: Path) -> None:
    """Nobody listens: the table names each check, the exit code is 1, the JUnit file counts the failures."""
    junit = tmp_path / "check.xml"
    outcome = CliRunner().invoke(rewards_cli, ["check", "http://127.0.0.1:9", "--junit", str(junit), "--timeout", "2"])
    assert outcome.exit_code == 1
    assert "FAILED" in outcome.output
    suite = ElementTree.parse(junit).getroot()
    assert int(suite.attrib["tests"]) == len(CHECKS)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == conformance.PATIENCE


def test_a_misspelt_check_is_named() -> None:
    """Asking for a check that does not exist lists those that do."""
    with pytest.raises(InvalidInput, match="'rank_json'; the checks are alive, info"):
        conformance.run("http://127.0.0.1:9", only=["rank_json"])


def test_every_check_states_its_fact() -> None:
    """The table's text is each check's docstring; none is empty, none ends in a full stop."""
    for check in CHECKS:
        assert re.match(r"\S.*[^.]$", (check.__doc__ or "").strip().splitlines()[0])
