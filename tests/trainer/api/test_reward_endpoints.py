"""Endpoints over REST: kinds and their options, checks of other servers, a declared file, and secrets that stay so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from cryptography.fernet import Fernet

from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings
from dipole_trainer.api.app import create_app
from dipole_trainer.api.dependencies import ApiState

JOBS = "/v1/fine_tuning/jobs"
SECRET = "very-secret-key-of-the-judge"
JUDGE = {
    "name": "judge", "url": "https://127.0.0.1:8000/", "kind": "vllm-score", "options": {"model": "judge-2b"},
    "key": SECRET, "description": "d",
}  # fmt: skip
JOB = {
    "prompts": [{"prompt": "a red square"}],
    "steps": 4,
    "candidates": 4,
    "method": {"type": "sft"},
    "allow_unready": True,
}
Test = Callable[[httpx.AsyncClient, ApiState], Awaitable[None]]


def run(folder: Path, test: Test, transport: httpx.BaseTransport | None = None, **more: Any) -> None:
    """`test` on an API of its own, which has started."""

    async def main() -> None:
        settings = ApiSettings(
            home=folder, database_url=f"sqlite:///{folder}/jobs.db", artifacts_url=f"{folder}/artifacts", **more
        )
        app = create_app(settings, reward_transport=transport)
        async with app.router.lifespan_context(app):
            asgi = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=asgi, base_url="http://127.0.0.1:8400", timeout=60) as client:
                await test(client, app.state.api)

    asyncio.run(main())


async def ok(request: Awaitable[httpx.Response]) -> Any:
    answer = await request
    assert answer.status_code == 200, answer.text
    return answer.json()


# ---- registering and naming -------------------------------------------------------------------------------------


def test_a_kind_is_registered_and_shown_and_its_secrets_are_not(tmp_path: Path) -> None:
    """Kind, options and the credential's name come back; the key in no answer, error, OpenAPI page or log line."""

    async def test(client: httpx.AsyncClient, state: ApiState) -> None:
        with structlog.testing.capture_logs() as logged:
            answers = [
                await client.post("/v1/rewards", json={**JUDGE, "tls": "team-go"}),
                await client.post("/v1/rewards", json={**JUDGE, "tls": "team-go"}),
                await client.post("/v1/rewards", json={**JUDGE, "kind": "unirl-score"}),
                await client.post("/v1/rewards", json={**JUDGE, "options": {"modl": 1}}),
                await client.post("/v1/rewards", json={**JUDGE, "tls": "../x"}),
                await client.post("/v1/rewards", json={**JUDGE, "key": SECRET + "\n"}),
                await client.post("/v1/rewards", json={**JUDGE, "key": SECRET * 400}),
                await client.post("/v1/rewards", json={**JUDGE, "url": f"http://ann:{SECRET}@127.0.0.1"}),
                await client.post("/v1/rewards/judge/check"),
                await client.post(JOBS, json={**JOB, "rewards": [{"name": "judge"}]}),
                await client.get("/v1/rewards"),
                await client.get("/openapi.json"),
                await client.get("/metrics"),
            ]
        texts = [answer.text for answer in answers] + [repr(logged), repr(state.rewards.get_endpoint("judge"))]
        assert not any(SECRET in text for text in texts)
        made = [answers[0].json(), answers[1].json()]
        assert [each["change"] for each in made] == ["registered", "unchanged"]
        shown = {name: made[0][name] for name in ("url", "kind", "options", "tls", "has_key")}
        assert shown == {
            "url": "https://127.0.0.1:8000", "kind": "vllm-score", "options": {"model": "judge-2b"},
            "tls": "team-go", "has_key": True,
        }  # fmt: skip
        wrong = [each.json()["errors"][0]["field"] for each in answers[2:8]]
        assert wrong == ["options.reward", "options.modl", "tls", "key", "key", "url"]
        assert "DIPOLE_TLS_DIR" in answers[8].json()["problem"]
        moved = await ok(client.post("/v1/rewards", json={**JUDGE, "key": None, "url": "http://localhost:1"}))
        assert (moved["change"], sorted(moved["changed"])) == ("changed", ["key", "tls", "url"])

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("reward", "field"),
    [
        ({"url": "http://127.0.0.1:1", "kind": "unirl-score"}, "rewards[0].options.reward"),
        ({"url": "http://127.0.0.1:1", "kind": "tgi"}, "rewards[0].kind"),
        ({"url": "http://evil.example", "kind": "vllm-score"}, "rewards[0].url"),
        ({"url": "http://127.0.0.1@evil.example", "kind": "vllm-score"}, "rewards[0].url"),
        ({"url": "http://127.0.0.1:1", "tls": "team-go"}, "rewards[0].tls"),
        ({"url": "http://127.0.0.1:1", "key": "x"}, "rewards[0].key"),
        ({"kind": "vllm-score"}, "rewards[0].kind"),
        ({"options": {"model": "m"}}, "rewards[0].options"),
    ],
)
def test_an_inline_endpoint_is_checked_like_a_registered_one(
    tmp_path: Path, reward: dict[str, Any], field: str
) -> None:
    """It takes kind and options, obeys the allow-list, and has neither keys nor certificates."""

    async def test(client: httpx.AsyncClient, _: ApiState) -> None:
        answer = await client.post(JOBS, json={**JOB, "rewards": [{"name": "x", **reward}]})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field

    run(tmp_path, test)


def test_a_job_keeps_its_inline_endpoint(tmp_path: Path) -> None:
    """Kind and options are in the job's spec and are what it resolves to."""

    async def test(client: httpx.AsyncClient, state: ApiState) -> None:
        given = {"name": "x", "url": "http://127.0.0.1:1", "kind": "unirl-score", "options": {"reward": "hpsv3"}}
        job = await ok(client.post(JOBS, json={**JOB, "rewards": [given]}))
        (spec,) = state.jobs.load_spec(job["id"]).rewards
        found = state.rewards.resolve_endpoint(spec, ["127.0.0.1"], field="x")
        assert (found.url, found.kind, found.options) == (given["url"], given["kind"], given["options"])

    run(tmp_path, test)


def test_a_job_that_says_no_deadline_has_that_of_the_endpoint(tmp_path: Path) -> None:
    """People need hours: what an endpoint was registered with holds unless the job says another, and 60 s else."""

    async def test(client: httpx.AsyncClient, state: ApiState) -> None:
        slow = {"url": "http://127.0.0.1:8450", "options": {"timeout_s": 90000}}
        await ok(client.post("/v1/rewards", json={"name": "people", **slow}))
        await ok(client.post("/v1/rewards", json={"name": "quick", "url": "http://127.0.0.1:8401"}))
        rewards = [{"name": "people"}, {"name": "quick"}, {"name": "others", **slow}]
        job = await ok(client.post(JOBS, json={**JOB, "rewards": rewards}))
        assert [each.timeout_s for each in state.jobs.load_spec(job["id"]).rewards] == [90000, 60, 90000]
        hurried = await ok(client.post(JOBS, json={**JOB, "rewards": [{"name": "people", "timeout_s": 60}]}))
        assert [each.timeout_s for each in state.jobs.load_spec(hurried["id"]).rewards] == [60]
        wrong = {"name": "people", "url": slow["url"], "options": {"timeout_s": 1e9}}
        assert (await client.post("/v1/rewards", json=wrong)).status_code == 422

    run(tmp_path, test)


# ---- checks -----------------------------------------------------------------------------------------------------

MODELS = {"data": [{"id": "judge-2b"}, {"id": "other"}]}
SCORED = {"id": "s", "created": 1, "model": "judge-2b", "data": [{"index": 0, "score": 0.5}], "usage": {}}
BLIND = {**SCORED, "data": [{"index": 0, "score": 0.5}]}


@pytest.mark.parametrize(
    ("answers", "problem", "model"),
    [
        ({"/health": (200, {}), "/v1/models": (200, MODELS), "/score": (200, SCORED)}, None, "judge-2b"),
        (
            {"/health": (200, {}), "/v1/models": (200, MODELS), "/score": (200, BLIND)},
            "two images that differ have the same score, 0.5",
            "judge-2b",
        ),
        ({"/health": (503, {})}, "GET /health answered 503", None),
        ({"/health": (200, {}), "/v1/models": (200, {"data": [{"id": "x"}]})}, "serves x, not judge-2b", None),
        (
            {"/health": (200, {}), "/v1/models": (200, MODELS), "/score": (400, {"error": {"message": "no images"}})},
            "400: no images",
            "judge-2b",
        ),
        ({"/health": (200, {}), "/v1/models": (401, {"error": f"not {SECRET}"})}, "answered 401", None),
    ],
    ids=["right", "blind", "not ready", "another model", "text only", "key echoed"],
)
def test_a_vllm_server_is_asked_what_it_serves_and_for_two_scores(
    tmp_path: Path, answers: dict[str, tuple[int, Any]], problem: str | None, model: str | None
) -> None:
    """A check goes to /health, /v1/models and /score, with the key, and says what is wrong."""
    keys = set()

    def endpoint(request: httpx.Request) -> httpx.Response:
        keys.add(request.headers["authorization"])
        status, said = answers[request.url.path]
        if said is SCORED:
            said = {**SCORED, "data": [{"index": 0, "score": len(request.content) / 1e6}]}
        stream = httpx.ByteStream(json.dumps(said).encode())
        return httpx.Response(status, headers={"content-type": "application/json"}, stream=stream)

    async def test(client: httpx.AsyncClient, _: ApiState) -> None:
        await ok(client.post("/v1/rewards", json=JUDGE))
        found = await ok(client.post("/v1/rewards/judge/check"))
        assert found["ok"] is (problem is None)
        assert problem is None or problem in found["problem"]
        assert (found["info"] or {}).get("model") == model
        assert SECRET not in json.dumps(found)
        assert keys == {f"Bearer {SECRET}"}

    run(tmp_path, test, transport=httpx.MockTransport(endpoint))


def test_a_key_that_does_not_open_is_what_a_check_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a reward that was stored with another DIPOLE_SECRETS_KEY: in the check's own answer, with the fix."""

    async def store(client: httpx.AsyncClient, _: ApiState) -> None:
        await ok(client.post("/v1/rewards", json=JUDGE))

    async def look(client: httpx.AsyncClient, _: ApiState) -> None:
        checked = await ok(client.post("/v1/rewards/judge/check"))
        assert checked["ok"] is False
        assert "set DIPOLE_SECRETS_KEY" in checked["problem"]

    monkeypatch.setenv("DIPOLE_SECRETS_KEY", Fernet.generate_key().decode())
    run(tmp_path, store)
    monkeypatch.delenv("DIPOLE_SECRETS_KEY")
    run(tmp_path, look)


def test_a_wrong_option_is_named_once(tmp_path: Path) -> None:
    """What is told of it begins with its path, and does not say it twice."""

    async def test(client: httpx.AsyncClient, _: ApiState) -> None:
        answer = await client.post("/v1/rewards", json={**JUDGE, "options": {"modl": "x"}})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("options.modl: Extra inputs")

    run(tmp_path, test)


def test_a_redirect_is_never_followed(tmp_path: Path) -> None:
    """Not while checking, at any step: the key would go with it, and past the allow-list."""
    hosts = set()

    def endpoint(request: httpx.Request) -> httpx.Response:
        hosts.add(request.url.host)
        ready = request.url.path == "/health"
        headers = {} if ready else {"location": "http://evil.example/v1/models"}
        return httpx.Response(200 if ready else 307, headers=headers, stream=httpx.ByteStream(b""))

    async def test(client: httpx.AsyncClient, _: ApiState) -> None:
        await ok(client.post("/v1/rewards", json=JUDGE))
        assert "redirect" in (await ok(client.post("/v1/rewards/judge/check")))["problem"]
        assert hosts == {"127.0.0.1"}

    run(tmp_path, test, transport=httpx.MockTransport(endpoint))


# ---- rewards.toml at the start ----------------------------------------------------------------------------------


def test_a_declared_file_is_registered_at_the_start_and_again_without_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it names is registered with its key, what it does not name stays, and the log says what changed."""
    monkeypatch.setenv("KEY_OF_THE_JUDGE", SECRET)
    file = tmp_path / "rewards.toml"
    text = '[rewards.judge]\nurl = "http://127.0.0.1:{port}/"\nkind = "vllm-score"\nkey_env = "KEY_OF_THE_JUDGE"\n'

    def start(port: int) -> list[Any]:
        file.write_text(text.format(port=port))

        async def test(client: httpx.AsyncClient, state: ApiState) -> None:
            endpoint = state.rewards.get_endpoint("judge")
            assert (endpoint.url, endpoint.kind) == (f"http://127.0.0.1:{port}", "vllm-score")
            assert endpoint.key is not None
            assert endpoint.key.get_secret_value() == SECRET
            await ok(client.post("/v1/rewards", json={"name": "other", "url": "http://127.0.0.1:9"}))

        with structlog.testing.capture_logs() as logged:
            run(tmp_path, test, rewards_file=file)
        assert SECRET not in repr(logged)
        return [
            (each["event"], each.get("change", each.get("rewards"))) for each in logged if "reward" in each["event"]
        ]

    assert start(1) == [("reward_declared", "registered")]
    assert start(1) == [("reward_declared", "unchanged"), ("rewards_not_in_file", ["other"])]
    assert start(2) == [("reward_declared", "changed"), ("rewards_not_in_file", ["other"])]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[rewards.judge]\nurl = "http://evil.example"\n', "rewards.judge.url names evil.example"),
        ('[rewards.judge]\nurl = "http://127.0.0.1:1"\nkind = "x"\n', "rewards.judge: kind"),
        (
            '[rewards.judge]\nurl = "http://127.0.0.1:1"\nkind = "unirl-score"\noptions = { reward = "a\\u0000b" }\n',
            "rewards.judge.options.reward: a NUL character",
        ),
    ],
)
def test_a_wrong_file_stops_the_start_and_registers_nothing(tmp_path: Path, text: str, said: str) -> None:
    """All of it or nothing: the entry before the wrong one is not registered either."""
    file = tmp_path / "rewards.toml"
    file.write_text('[rewards.first]\nurl = "http://127.0.0.1:1"\n' + text)

    async def never(*_: object) -> None:
        raise AssertionError("started")

    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path, never, rewards_file=file)

    async def test(client: httpx.AsyncClient, _: ApiState) -> None:
        assert (await ok(client.get("/v1/rewards")))["data"] == []

    run(tmp_path, test)


# ---- people behind an endpoint --------------------------------------------------------------------------------------

QUEUE = {
    "pending": 3, "leased": 1, "answered": 7, "oldest_s": 60.0, "ratings_per_hour": 4, "agreement": 0.8,
    "deliveries": {"waiting": 1}, "by_job": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "said", "found", "problem"),
    [
        (200, QUEUE, QUEUE, None),
        (404, {}, None, None),  # a reward that is no rating service
        (401, {}, None, "answered 401"),
        (200, {"pending": 3}, None, "leased"),
        (200, QUEUE | {"by_job": ["x" * 2**19]}, None, "more than"),
        (302, {}, None, "redirect"),
    ],
)
def test_the_queue_of_a_rating_service_is_read_with_the_endpoints_key(
    tmp_path: Path, status: int, said: dict[str, Any], found: dict[str, Any] | None, problem: str | None
) -> None:
    """From the registered address alone; the link to its page is the one that browsers can follow."""
    asked = list[httpx.Request]()

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        headers = {"content-type": "application/json", "location": "http://127.0.0.1:1/"}
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(json.dumps(said).encode()))

    async def test(client: httpx.AsyncClient, state: ApiState) -> None:
        people = {"name": "people", "url": "http://127.0.0.1:8450", "key": SECRET}
        await ok(client.post("/v1/rewards", json=people))
        shown = await ok(client.get("/v1/rewards/people/rating_queue"))
        assert shown["queue"] == found
        assert (shown["problem"] is None) == (problem is None)
        assert (problem or "") in (shown["problem"] or "")
        page = "https://raters.lan/dipole/operator"
        assert shown["operator_url"] == (None if status == 404 else page)
        (request,) = asked
        assert str(request.url) == "http://127.0.0.1:8450/v1/ratings/status"
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        assert (await client.get("/v1/rewards/nobody/rating_queue")).status_code == 404

    run(tmp_path, test, httpx.MockTransport(serve), ratings_url="https://raters.lan/dipole/")
