"""/v1/rank and its neighbours in-process: what a caller gets for right requests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import JsonValue
from standardwebhooks.webhooks import Webhook

from dipole.errors import ConfigurationError
from dipole.protocol import images
from dipole.protocol.schemas import PendingRanking, Problem, Ranking, RankRequest, RewardInfo
from dipole.settings import sent_key
from dipole_rewards.app import create_app
from dipole_rewards.reward import Golden, Pixels, Reward, Scores
from dipole_rewards.server import openapi
from dipole_rewards.settings import RewardSettings

pytestmark = pytest.mark.anyio
SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes, ok").decode()


class Scripted(Reward):
    """Does what the prompt says, so that one service shows every behaviour."""

    name = "scripted"
    gate: ClassVar[threading.Event] = threading.Event()
    calls: ClassVar[list[str]] = []
    fail: ClassVar[bool] = False

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        self.calls.append(prompt)
        match prompt.partition(" ")[0]:
            case "wait":
                assert self.gate.wait(20)
                if self.fail:
                    raise ZeroDivisionError
            case "raise":
                raise ZeroDivisionError("secret detail")
            case "short":
                return Scores([1.0])
            case "nan":
                return Scores([float("nan"), *[1.0] * (len(images) - 1)])
        return Scores([float(image[0, 0, 0]) for image in images])

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.full((1, 1, 3), 7, np.uint8), score=7.0)


class Slow(Scripted):
    name = "slow"
    slow = True


class Broken(Scripted):
    name = "broken"

    @classmethod
    def load(cls, device: str) -> Broken:
        raise FileNotFoundError("weights.safetensors is missing")


class Judged(Scripted):
    name = "judged"
    calibrated = False

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.zeros((1, 1, 3), np.uint8), score=0.5)


SCRIPTED = f"{__name__}:Scripted"


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    Scripted.gate, Scripted.calls[:], Scripted.fail = threading.Event(), [], False
    yield
    Scripted.gate.set()


def body(prompt: str = "p", values: Sequence[int] = (10, 30, 20), **more: Any) -> dict[str, Any]:
    """A JSON request of one-pixel images that `Scripted` scores by their red value."""
    return {
        "prompt": prompt,
        "candidates": [
            {"id": f"i{index}", "image": {"media_type": "image/png", "data": png(value)}}
            for index, value in enumerate(values)
        ],
        **more,
    }


def png(value: int) -> str:
    return base64.b64encode(images.encode_png(np.full((2, 2, 3), value, np.uint8))).decode()


async def test_json_is_ranked(serve: Any) -> None:
    """Scores in request order, rank 1 the best, the reward's name and revision in every answer."""
    async with serve(reward=SCRIPTED) as client:
        answer = await client.post("/v1/rank", json=body())
    ranking = Ranking.model_validate_json(answer.content)
    assert [(item.id, item.score, item.rank) for item in ranking.results] == [
        ("i0", 10, 3),
        ("i1", 30, 1),
        ("i2", 20, 2),
    ]
    assert (ranking.model, ranking.model_revision) == ("Scripted", "1")
    assert ranking.usage["images"] == 3
    assert answer.headers["x-request-id"]


async def test_multipart_npy_gives_the_same_ranking(serve: Any) -> None:
    """The fast lane: JSON in part `request`, one npy part a candidate."""
    request = body()
    for candidate in request["candidates"]:
        candidate["image"] = {"media_type": images.NPY}
    files = {f"i{n}": (f"i{n}", images.encode_npy(np.full((2, 2, 3), v, np.uint8))) for n, v in enumerate((10, 30, 20))}
    async with serve(reward=SCRIPTED) as client:
        answer = await client.post("/v1/rank", data={"request": json.dumps(request)}, files=files)
        as_file = {"request": ("request.json", json.dumps(request), "application/json"), **files}
        again = await client.post("/v1/rank", files=as_file)
    for each in (answer, again):
        assert [item.score for item in Ranking.model_validate_json(each.content).results] == [10, 30, 20]


async def test_nan_is_null(serve: Any) -> None:
    """The candidate has no score, no rank, and the error non_finite; the others are ranked."""
    async with serve(reward=SCRIPTED) as client:
        first, second, _ = (await client.post("/v1/rank", json=body("nan"))).json()["results"]
    assert (first["score"], first["rank"], first["error"]["code"]) == (None, None, "non_finite")
    assert second["rank"] == 1


@pytest.mark.parametrize(("prompt", "said"), [("short", "1 scores for 3 images"), ("raise", "ZeroDivisionError")])
async def test_a_faulty_reward_is_a_500_and_the_service_lives_on(serve: Any, prompt: str, said: str) -> None:
    """Wrong count or exception: a problem that says so, without the exception's words; the next request is ranked."""
    async with serve(reward=SCRIPTED) as client:
        answer = await client.post("/v1/rank", json=body(prompt))
        assert answer.status_code == 500
        assert said in Problem.model_validate_json(answer.content).model_dump()["detail"]
        assert "secret detail" not in answer.text
        assert (await client.post("/v1/rank", json=body())).status_code == 200


async def test_a_repeat_gets_the_first_answer(serve: Any) -> None:
    """Same key, same content: one scoring, also while the first still runs. Other content: 422."""
    async with serve(reward=SCRIPTED) as client:
        key = {"Idempotency-Key": "k1"}
        both = [asyncio.create_task(client.post("/v1/rank", json=body("wait"), headers=key)) for _ in range(2)]
        await until(lambda: "wait" in Scripted.calls)
        Scripted.gate.set()
        first, second = [(await each).json() for each in both]
        assert first == second
        assert Scripted.calls.count("wait") == 1
        other = await client.post("/v1/rank", json=body("wait", (1, 2)), headers=key)
        assert other.status_code == 422
        assert "another body" in other.json()["detail"]
        assert (await client.post("/v1/rank", json=body(), headers={"Idempotency-Key": "x" * 300})).status_code == 422


async def test_a_failed_request_leaves_no_answer_behind(serve: Any) -> None:
    """The repeat of a failure is tried again."""
    async with serve(reward=SCRIPTED) as client:
        for _ in range(2):
            answer = await client.post("/v1/rank", json=body("raise"), headers={"Idempotency-Key": "k"})
            assert answer.status_code == 500
    assert Scripted.calls.count("raise") == 2


async def test_old_answers_make_room(serve: Any) -> None:
    """With room for one key the first is forgotten, and its repeat scored anew."""
    async with serve(reward=SCRIPTED, reward_idempotency_entries=1) as client:
        for key in ("a", "b", "a"):
            await client.post("/v1/rank", json=body("once"), headers={"Idempotency-Key": key})
    assert Scripted.calls.count("once") == 3


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not happen within 10 s")


async def test_respond_async_is_202_then_the_ranking(serve: Any) -> None:
    """Location and Retry-After; pending while it runs, the ranking under the same id afterwards."""
    async with serve(reward=SCRIPTED) as client:
        answer = await client.post("/v1/rank", json=body("wait"), headers={"Prefer": "respond-async"})
        pending = PendingRanking.model_validate_json(answer.content)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"rankings/{pending.id}"  # relative, whatever prefix a proxy adds
        look = await client.get(place(answer))
        assert (look.status_code, look.headers["retry-after"]) == (202, "1")
        Scripted.gate.set()
        while (look := await client.get(place(answer))).status_code == 202:
            await asyncio.sleep(0.01)
        assert Ranking.model_validate_json(look.content).id == pending.id
        assert (await client.delete(place(answer))).status_code == 409


async def test_a_slow_reward_always_answers_202_and_failures_are_kept(serve: Any) -> None:
    """`slow = True` needs no header; a reward that raises leaves a failed ranking with its reason."""
    async with serve(reward=f"{__name__}:Slow") as client:
        answer = await client.post("/v1/rank", json=body("raise"))
        assert answer.status_code == 202
        while (look := await client.get(place(answer))).status_code == 202:
            await asyncio.sleep(0.01)
    state = PendingRanking.model_validate_json(look.content)
    assert state.status == "failed"
    assert state.error is not None
    assert state.error.code == "reward-failed"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_a_lost_202_leaves_no_answer_behind(serve: Any, end: str) -> None:
    """While it is pending a repeat gets the same 202; once it failed or was cancelled, the repeat is a new ranking."""
    async with serve(reward=SCRIPTED) as client:
        first, again = [await post_async(client, "wait", key="k") for _ in range(2)]
        assert first == again
        if end == "cancelled":
            assert (await client.delete(first)).json()["status"] == "cancelled"
        else:
            Scripted.fail = True
            Scripted.gate.set()
            while (look := await client.get(first)).status_code == 202:
                await asyncio.sleep(0.01)
            assert look.json()["status"] == "failed"
        Scripted.fail = False
        Scripted.gate.set()
        second = await post_async(client, "wait", key="k")
        assert second != first
        assert (await finished(client, second))["status"] == "completed"
        assert await post_async(client, "wait", key="k") == second


async def test_a_202_whose_ranking_made_room_leaves_no_answer_behind(serve: Any) -> None:
    """The repeat of what is no longer kept is ranked anew, and not sent to a place that is 404."""
    async with serve(reward=SCRIPTED, reward_max_pending=1) as client:
        first = await post_async(client, "p", key="a")
        await finished(client, first)
        await finished(client, await post_async(client, "p", key="b"))
        assert (await client.get(first)).status_code == 404
        assert (await finished(client, await post_async(client, "p", key="a")))["status"] == "completed"


async def post_async(client: httpx.AsyncClient, prompt: str, *, key: str | None = None) -> str:
    """The Location of a 202."""
    headers = {"Prefer": "respond-async", **({"Idempotency-Key": key} if key else {})}
    answer = await client.post("/v1/rank", json=body(prompt), headers=headers)
    assert answer.status_code == 202, answer.text
    return place(answer)


def place(answer: httpx.Response) -> str:
    """Where a 202 says that its ranking is."""
    return str(answer.url.join(answer.headers["location"]))


async def finished(client: httpx.AsyncClient, location: str) -> dict[str, Any]:
    while (look := await client.get(location)).status_code == 202:
        await asyncio.sleep(0.01)
    found: dict[str, Any] = look.json()
    return found


async def waiting(client: httpx.AsyncClient, groups: int) -> None:
    """Until so many groups wait for the model."""
    while f"dipole_reward_queue_depth {groups}.0" not in (await client.get("/metrics")).text:
        await asyncio.sleep(0.01)


async def test_a_full_queue_is_503_and_never_a_202(serve: Any) -> None:
    """What cannot be queued is refused when it comes, also when 202 was asked for, and takes no place of a ranking."""
    async with serve(reward=SCRIPTED, reward_queue_depth=1, reward_max_pending=3) as client:
        head = {"Prefer": "respond-async"}
        first = await post_async(client, "wait")
        await until(lambda: "wait" in Scripted.calls)
        second = await post_async(client, "next")
        await waiting(client, 1)
        for key in ({}, {"Idempotency-Key": "k"}):
            full = await client.post("/v1/rank", json=body("third"), headers={**head, **key})
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) >= 1
        Scripted.gate.set()
        assert [(await finished(client, each))["status"] for each in (first, second)] == ["completed"] * 2
        assert (await client.get(first)).status_code == 200


async def test_delete_cancels_and_what_waits_is_never_scored(serve: Any) -> None:
    """The second group waits behind the first; cancelled, it stays cancelled and the model never sees it."""
    async with serve(reward=SCRIPTED) as client:
        head = {"Prefer": "respond-async"}
        await client.post("/v1/rank", json=body("wait"), headers=head)
        await until(lambda: "wait" in Scripted.calls)
        second = await client.post("/v1/rank", json=body("never"), headers=head)
        await waiting(client, 1)
        for _ in range(2):
            gone = await client.delete(place(second))
            assert gone.json()["status"] == "cancelled"
        await asyncio.sleep(0.05)  # in one process, requests alone do not let the service's own tasks run
        Scripted.gate.set()
        await client.post("/v1/rank", json=body("after"))
        assert (await client.get(place(second))).json()["status"] == "cancelled"
    assert "never" not in Scripted.calls


async def test_pending_rankings_are_bounded(serve: Any) -> None:
    """One place: the second gets 503 with Retry-After; a finished one makes room."""
    async with serve(reward=SCRIPTED, reward_max_pending=1) as client:
        head = {"Prefer": "respond-async"}
        first = await client.post("/v1/rank", json=body("wait"), headers=head)
        full = await client.post("/v1/rank", json=body(), headers=head)
        assert (full.status_code, full.headers["retry-after"]) == (503, "10")
        Scripted.gate.set()
        while (await client.get(place(first))).status_code == 202:
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/rank", json=body(), headers=head)).status_code == 202
        assert (await client.get(place(first))).status_code == 404


async def test_a_full_queue_is_503_with_retry_after_and_health_answers(serve: Any) -> None:
    """One group runs, one waits, the third is told to come back; /livez answers all the while."""
    async with serve(reward=SCRIPTED, reward_queue_depth=1) as client:
        running = asyncio.create_task(client.post("/v1/rank", json=body("wait")))
        await until(lambda: "wait" in Scripted.calls)
        waiting = asyncio.create_task(client.post("/v1/rank", json=body("next")))
        metrics = ""
        while "dipole_reward_queue_depth 1.0" not in metrics:
            await asyncio.sleep(0.01)
            metrics = (await client.get("/metrics")).text
        full = await client.post("/v1/rank", json=body("third"))
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) >= 1
        assert (await client.get("/livez")).status_code == 200
        Scripted.gate.set()
        assert [(await task).status_code for task in (running, waiting)] == [200, 200]


async def test_waiting_images_are_bounded_in_bytes_too(serve: Any) -> None:
    """Room for one group of 36 bytes: the second one that waits is told to come back; an idle queue takes any group."""
    async with serve(reward=SCRIPTED, reward_queue_bytes=40) as client:
        running = asyncio.create_task(client.post("/v1/rank", json=body("wait")))
        await until(lambda: "wait" in Scripted.calls)
        waiting = asyncio.create_task(client.post("/v1/rank", json=body("next", range(9))))
        while "dipole_reward_queue_depth 1.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/rank", json=body("third"))).status_code == 503
        Scripted.gate.set()
        assert [(await task).status_code for task in (running, waiting)] == [200, 200]


async def test_an_answer_that_takes_too_long_is_503(serve: Any) -> None:
    """The caller is not kept past reward_answer_timeout_s."""
    async with serve(reward=SCRIPTED, reward_answer_timeout_s=0.1) as client:
        assert (await client.post("/v1/rank", json=body("wait"))).status_code == 503


async def test_callbacks_are_signed_and_tried_again(serve: Any) -> None:
    """The event verifies with the Standard Webhooks library; a 500 of the receiver leads to a second delivery."""
    received: list[httpx.Request] = []

    def receiver(request: httpx.Request) -> httpx.Response:
        received.append(request)
        return httpx.Response(500 if len(received) == 1 else 204)

    settings = {"reward_callback_hosts": ["trainer.internal"], "reward_callback_secret": SECRET}
    async with serve(reward=SCRIPTED, callback_transport=httpx.MockTransport(receiver), **settings) as client:
        answer = await client.post("/v1/rank", json=body(callback_url="https://trainer.internal/hook"))
        assert answer.status_code == 202
        await until(lambda: len(received) == 2)
    event = Webhook(SECRET).verify(received[1].content.decode(), dict(received[1].headers))
    assert event["type"] == "ranking.completed"
    assert Ranking.model_validate(event["data"]).id == answer.json()["id"]
    assert len({request.headers["webhook-id"] for request in received}) == 1


async def test_callbacks_go_to_allowed_hosts_only(serve: Any) -> None:
    """Off by default; another host, another scheme and passwords are refused, each naming callback_url."""
    async with serve(reward=SCRIPTED) as client:
        refused = await client.post("/v1/rank", json=body(callback_url="http://127.0.0.1/"))
        assert refused.status_code == 422
        assert "sends no callbacks" in refused.json()["detail"]
    async with serve(reward=SCRIPTED, reward_callback_hosts="a.org", reward_callback_secret=SECRET) as client:
        for url in ("http://b.org/", "ftp://a.org/", "http://u:p@a.org/", "http://a.org@b.org/", "http://[", "x"):
            refused = await client.post("/v1/rank", json=body(callback_url=url))
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["field"] == "callback_url"


async def test_readiness_waits_for_the_golden_score(serve: Any) -> None:
    """Missing weights and a golden mismatch keep /readyz and /v1/rank at 503 with the reason; /livez answers 200."""
    for reward, reason in (("Broken", "weights.safetensors is missing"), ("Judged", "golden image")):
        async with serve(reward=f"{__name__}:{reward}", ready=False) as client:
            while reason not in (answer := await client.get("/readyz")).text:
                assert answer.status_code == 503
                await asyncio.sleep(0.01)
            assert (await client.post("/v1/rank", json=body())).status_code == 503
            assert (await client.get("/livez")).status_code == 200


async def test_info_and_metrics(serve: Any) -> None:
    """/v1/info says what is served under which name; /metrics counts images, nulls by reason and flat groups."""
    async with serve(reward=f"{__name__}:Scripted", reward_name="mine", reward_max_candidates=5) as client:
        info = RewardInfo.model_validate_json((await client.get("/v1/info")).content)
        assert (info.name, info.max_candidates, info.calibrated) == ("mine", 5, True)
        await client.post("/v1/rank", json=body("nan"))
        metrics = (await client.get("/metrics")).text
    assert "dipole_reward_images_total 3.0" in metrics
    assert 'dipole_reward_nulls_total{code="non_finite"} 1.0' in metrics
    assert "dipole_reward_flat_groups_total 1.0" in metrics


async def test_a_key_is_asked_for(serve: Any) -> None:
    """Without the key 401 as problem+json; with it 200; health stays open."""
    async with serve(reward=SCRIPTED, reward_key="0123456789abcdef") as client:
        refused = await client.post("/v1/rank", json=body())
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.headers["content-type"] == "application/problem+json"
        for wrong in ("Bearer 0123456789abcdeX", "Basic 0123456789abcdef", "Bearer", "Bearer é"):
            assert (await client.get("/v1/info", headers={"Authorization": wrong.encode()})).status_code == 401
        right = {"Authorization": "Bearer 0123456789abcdef"}
        assert (await client.post("/v1/rank", json=body(), headers=right)).status_code == 200
        assert (await client.get("/livez")).status_code == 200


async def test_a_key_is_rotated_and_nobody_refused(serve: Any) -> None:
    """Whoever calls sends the first of several; a server opens to any of its own, and to both at once to neither."""
    old, new = "0123456789abcdef", "fedcba9876543210"
    for held, given in ((old, f"{old},{new}"), (f"{old},{new}", f"{new}, {old}"), (f"{new},{old}", new)):
        for server, caller in ((held, given), (given, held), (given, given)):
            async with serve(reward=SCRIPTED, reward_key=server) as client:
                headers = {"Authorization": f"Bearer {sent_key(caller)}"}
                assert (await client.post("/v1/rank", json=body(), headers=headers)).status_code == 200, (
                    server,
                    caller,
                )
                headers = {"Authorization": f"Bearer {old},{new}"}
                assert (await client.get("/v1/info", headers=headers)).status_code == 401


def test_an_open_host_needs_a_key() -> None:
    """Off loopback without a key the service refuses to start and names the setting."""
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_KEY"):
        create_app(RewardSettings(reward=SCRIPTED, reward_host="0.0.0.0"))
    create_app(RewardSettings(reward=SCRIPTED, reward_host="::1"))
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_CALLBACK_SECRET"):
        create_app(RewardSettings(reward=SCRIPTED, reward_callback_hosts=["a.org"]))


async def test_the_documents_are_true(serve: Any) -> None:
    """OpenAPI's examples validate against its own schemas, the request example is ranked, errors are problem+json."""
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
        answer = await client.post("/v1/rank", json=openapi.REQUEST_EXAMPLE)
        assert answer.status_code == 200
    RankRequest.model_validate(openapi.REQUEST_EXAMPLE)
    RankRequest.model_validate_json(openapi.MULTIPART_EXAMPLE["request"])
    Ranking.model_validate(openapi.RANKING_EXAMPLE)
    RewardInfo.model_validate(openapi.INFO_EXAMPLE)
    rank = document["paths"]["/v1/rank"]["post"]
    assert set(rank["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert set(rank["responses"]) == {"200", "202", "401", "408", "413", "415", "422", "500", "503"}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status[0] in "45":
                    assert set(response["content"]) == {"application/problem+json"}
    for name in ("Ranking", "RankRequest", "Problem"):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator.check_schema(document["components"]["schemas"][name])
        example = {"Ranking": answer.json(), "RankRequest": openapi.REQUEST_EXAMPLE}.get(name)
        Draft202012Validator(schema).validate(example or openapi.PROBLEM_EXAMPLE.model_dump(exclude_none=True))


def test_the_digest_of_a_key_is_not_the_key() -> None:
    """What is compared is a SHA-256."""
    from dipole.web.auth import hash_key

    assert hash_key("abc") == hashlib.sha256(b"abc").hexdigest()
