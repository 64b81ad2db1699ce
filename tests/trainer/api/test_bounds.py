"""No 500 that a caller can cause: numbers of any size, NUL and odd names on every route, over PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole_trainer.database.engine import upgrade_database
from dipole_trainer.spec import MAX_COUNT

JOBS = "/v1/fine_tuning/jobs"
REWARD = {"name": "shapes", "url": "http://127.0.0.1:9"}
JOB: dict[str, Any] = {"prompts": [{"prompt": "a red square"}], "rewards": [REWARD], "allow_unready": True}
Client = httpx.AsyncClient
RunApp = Callable[..., None]
BROKEN_TEXTS = [
    "%00",
    "a%00b",
    "%ED%A0%80",
    "%FF",
    "%F0%9F%98%80",
    "ft:m:dipole::%00",
    "ft:tiny-turbo:dipole::0b5e7f2c",
]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/images/generations": [{"model": model, "prompt": "x"} for model in ("NUL", "ftckpt-NUL", "ft:NUL")],
    JOBS: [
        {**JOB, **more}
        for more in (
            {"model": "NUL"}, {"revision": "NUL"}, {"training_file": "NUL", "prompts": []}, {"validation_file": "NUL"},
            {"replay_job": "NUL", "prompts": []}, {"pairs_file": "NUL", "prompts": []}, {"metadata": {"NUL": "NUL"}},
            {"prompts": [{"prompt": "NUL"}]}, {"rewards": [{"name": "shapes", "url": "http://127.0.0.1:9/NUL"}]},
            {"lora": {"target_modules": ["NUL"]}}, {"features": {"type": "clip", "weights": "NUL"}},
        )
    ],
    "/v1/rewards": [
        {**REWARD, **more} for more in ({"name": "NUL"}, {"url": "http://127.0.0.1/NUL"}, {"key": "NUL"},
                                        {"tls": "NUL"}, {"description": "NUL"}, {"options": {"a": "NUL"}})
    ],
    "/v1/api_keys": [{"name": "NUL", "scopes": ["train"]}],
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(url)
    return str(url)


def integers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of whole numbers in a document, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield path, schema
        for name, each in schema.items():
            yield from integers(each, f"{path}.{name}")
    elif isinstance(schema, list):
        for index, each in enumerate(schema):
            yield from integers(each, f"{path}[{index}]")


def test_every_whole_number_that_a_caller_gives_has_bounds(run_app: RunApp) -> None:
    """A number without one ends in a column of 32 bits, or in a loop."""

    async def test(client: Client, state: Any) -> None:
        document = (await client.get("/openapi.json")).json()
        schemas, given = document["components"]["schemas"], set()

        def follow(node: Any) -> None:
            if isinstance(node, dict):
                name = str(node.get("$ref", "")).rpartition("/")[2]
                if name and name not in given:
                    given.add(name)
                    follow(schemas[name])
                for each in node.values():
                    follow(each)
            elif isinstance(node, list):
                for each in node:
                    follow(each)

        operations = [each for path in document["paths"].values() for each in path.values()]
        for operation in operations:
            follow(operation.get("requestBody", {}))
        asked = {name: schemas[name] for name in given}
        asked["parameters"] = [operation.get("parameters", []) for operation in operations]
        found = list(integers(asked))
        assert len(found) > 20
        for path, schema in found:
            assert {"maximum", "exclusiveMaximum"} & schema.keys(), path
            assert {"minimum", "exclusiveMinimum"} & schema.keys(), path

    run_app(test)


@pytest.mark.parametrize("steps", [2**31 - 1, 2**31, 2**63, 10**400])
def test_more_steps_than_a_job_can_count_are_refused(run_app: RunApp, database_url: str, steps: int) -> None:
    async def test(client: Client, state: Any) -> None:
        for fields in (
            {"steps": steps},
            {"hyperparameters": {"n_epochs": steps}},
            {"evaluation": {"every": steps}},
            {"checkpoint_every": steps},
        ):
            answer = await client.post(JOBS, json={**JOB, **fields})
            assert answer.status_code == 422, answer.text
            assert next(iter(fields)) in answer.json()["errors"][0]["field"]

    run_app(test, database_url=database_url)


def test_the_most_steps_are_taken_and_epochs_beyond_them_name_their_field(run_app: RunApp, database_url: str) -> None:
    async def test(client: Client, state: Any) -> None:
        job = (await client.post(JOBS, json={**JOB, "steps": MAX_COUNT})).json()
        assert (await client.get(f"{JOBS}/{job['id']}")).json()["steps"] == MAX_COUNT
        many = {**JOB, "prompts": JOB["prompts"] * 16, "hyperparameters": {"n_epochs": MAX_COUNT}}
        answer = await client.post(JOBS, json=many)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "hyperparameters.n_epochs")
        epochs = {**many, "hyperparameters": {"n_epochs": 3, "batch_size": 5}}
        assert (await client.post(JOBS, json=epochs)).json()["steps"] == 10  # 48 / 5, rounded up

    run_app(test, database_url=database_url)


def test_no_text_in_a_path_or_query_is_a_500(run_app: RunApp, database_url: str) -> None:
    """Each parameter of each route, with what cannot be stored, and with what can and is not there."""

    async def test(client: Client, state: Any) -> None:
        document = (await client.get("/openapi.json")).json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                names = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
                for text in BROKEN_TEXTS:
                    url = path
                    for each in operation.get("parameters", []):
                        url = url.replace("{" + each["name"] + "}", text)
                    for query in ("", *(f"?{name}={text}" for name in names)):
                        if "{" in path or query:
                            answer = await client.request(method, url + query, json={} if method == "post" else None)
                            # an empty job can be planned, and nobody does it here
                            is_unplanned = path.endswith("/plan") and answer.status_code == 503
                            assert answer.status_code < 500 or is_unplanned, (method, url + query, answer.text)

    run_app(test, database_url=database_url, redis_url="redis://127.0.0.1:9/0")


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_no_text_in_a_body_is_a_500(run_app: RunApp, database_url: str, text: str) -> None:
    def broken(value: Any) -> Any:
        if isinstance(value, dict):
            return {broken(key): broken(each) for key, each in value.items()}
        if isinstance(value, list):
            return [broken(each) for each in value]
        return value.replace("NUL", text) if isinstance(value, str) else value

    async def test(client: Client, state: Any) -> None:
        for path, bodies in BODIES.items():
            for body in bodies:
                answer = await client.post(path, json=broken(body))
                assert answer.status_code == 422, (path, body, answer.text)

    run_app(test, database_url=database_url)


def test_two_who_register_one_name_at_once_are_both_answered(run_app: RunApp, database_url: str) -> None:
    async def test(client: Client, state: Any) -> None:
        for number in range(5):
            bodies = [{"name": f"r{number}", "url": f"http://127.0.0.1:{port}"} for port in range(9001, 9009)]
            answers = await asyncio.gather(*(client.post("/v1/rewards", json=body) for body in bodies))
            assert [answer.status_code for answer in answers] == [200] * 8

    run_app(test, database_url=database_url)
