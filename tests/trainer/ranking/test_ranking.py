"""CeleryRanker end to end: a real Redis, a real rank worker process, real HTTP endpoints that behave and misbehave."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import redis
import trustme
from cryptography.fernet import Fernet

from dipole.broker.candidates import CandidateStore, MissingCandidates
from dipole.errors import RewardUnavailable
from dipole.settings import PlatformSettings
from dipole.vault import Vault
from dipole_trainer.ranking import celery_ranker
from dipole_trainer.ranking.groups import CandidateGroup

from .ranking_harness import (
    Answer,
    Call,
    Endpoints,
    Harness,
    K,
    collect,
    good,
    group,
    ranking,
    reasons,
    reward,
    running_rank_worker,
    start_rank_worker,
)

# ---- the way there and back ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rank_worker")
def test_rankings_come_back_with_who_ranked(endpoint: Endpoints, harness: Harness) -> None:
    """Scores stand in candidate order with sub-scores, revision and time, go to the ledger, and carry our ids."""
    server = endpoint()
    ranker = harness.ranker(reward(server, "plain"))
    ranker.submit(group("g1"))
    (ranked,) = collect(ranker)
    result = ranked.results["plain"]
    assert result.scores == (0.0, 1.0, 2.0, 3.0)
    assert result.sub_scores == {"half": (0.5,) * K}
    assert (result.model, result.model_revision, result.recipe_version) == ("m", "r1", "v1")
    assert result.seconds > 0
    assert harness.ranked == [("g1", "plain", result)]
    headers = server.calls[0].headers
    assert headers["authorization"] == "Bearer a-key-of-the-endpoint"
    assert headers["idempotency-key"].startswith(headers["x-request-id"])
    assert ranker.collect(0) is None
    with redis.Redis.from_url(harness.settings.redis_url) as client:
        assert client.keys("dipole:candidates:*") == []  # a ranked group's images need no room any more


@pytest.mark.usefixtures("rank_worker")
def test_progress_goes_to_the_reward_that_wants_it_alone(endpoint: Endpoints, harness: Harness) -> None:
    """Through Redis and the rank worker; the other's request has no such field, which it might refuse."""
    eager, plain = endpoint(wants=("progress",)), endpoint()
    ranker = harness.ranker(reward(eager, "eager"), reward(plain, "indifferent"))
    ranker.submit(replace(group("half-way"), progress=0.5))
    collect(ranker)
    assert [call.progress for call in (*eager.calls, *plain.calls)] == [0.5, None]


@pytest.mark.usefixtures("rank_worker")
def test_groups_come_as_they_finish(endpoint: Endpoints, harness: Harness) -> None:
    """A group whose reward is slow does not hold back later ones."""

    def slow_first(call: Call) -> Answer:
        time.sleep(2 if call.prompt == "prompt slow" else 0)
        return good(call)

    ranker = harness.ranker(reward(endpoint(slow_first), "order"))
    ranker.submit(group("slow"))
    ranker.submit(group("fast"))
    assert [ranked.group_id for ranked in collect(ranker, 2)] == ["fast", "slow"]


@pytest.mark.usefixtures("rank_worker")
def test_a_hanging_reward_blocks_no_other(endpoint: Endpoints, harness: Harness) -> None:
    """With more groups hanging than a lane has threads, another reward still answers all of them at once."""
    server = endpoint()
    hanging = endpoint(lambda call: (hanging.closing.wait(60), good(call))[1])
    ranker = harness.ranker(reward(server, "quick"), reward(hanging, "hangs", required=False, timeout_s=6))
    started = time.monotonic()
    for index in range(12):
        ranker.submit(group(f"g{index}", index))
    while len(harness.ranked) < 12:
        assert ranker.collect(0.2) is None
        assert time.monotonic() - started < 6
    for ranked in collect(ranker, 12):
        assert ranked.results["quick"].failure is None
        assert "timeout" in (ranked.results["hangs"].failure or "")


@pytest.mark.usefixtures("rank_worker")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda call: ranking(call, [1.0] * (K + 1)), "invalid_response"),
        (lambda call: "<html><h1>Welcome to nginx</h1></html>", "invalid_response"),
    ],
    ids=["count", "html"],
)
def test_nonsense_is_left_out_or_stops_the_job(
    body: Callable[[Call], str], reason: str, endpoint: Endpoints, harness: Harness, request: pytest.FixtureRequest
) -> None:
    """A wrong count and HTML are failures with a reason, each by its reward's policy."""
    name = f"bad-{request.node.callspec.id}"
    bad = endpoint(lambda call: (200, {}, body(call)))
    ranker = harness.ranker(reward(endpoint(), "fine"), reward(bad, name, required=False, timeout_s=20))
    ranker.submit(group("g"))
    (ranked,) = collect(ranker)
    assert ranked.results["fine"].scores == (0.0, 1.0, 2.0, 3.0)
    assert ranked.results[name].scores == (None,) * K
    assert re.search(reason, ranked.results[name].failure or "")
    assert [told[1] for told in harness.ranked] == ["fine"]

    strict = harness.ranker(reward(bad, name, timeout_s=4), job="strict")
    strict.submit(group("g"))
    with pytest.raises(RewardUnavailable, match=reason) as caught:
        collect(strict)
    assert caught.value.reward == name


@pytest.mark.usefixtures("rank_worker")
@pytest.mark.parametrize(
    ("scores", "reason", "calls"),
    [([1.0, float("nan"), 2.0, 3.0], "not_finite", 2), ([None] * K, "0 of 4 candidates scored.*no face", 1)],
    ids=["nan", "null"],
)
def test_a_group_that_cannot_be_scored_fails_alone(
    scores: list[Any], reason: str, calls: int, endpoint: Endpoints, harness: Harness,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also of a required reward: the group comes back with the reason, and a later question is asked anew."""
    monkeypatch.setattr(celery_ranker, "MAX_SLIPS", 1)
    server = endpoint(lambda call: (200, {}, ranking(call, scores)))
    rewarded = reward(server, f"unscored-{request.node.callspec.id}")
    for asked in (1, 2):
        ranker = harness.ranker(rewarded)
        ranker.submit(group("g"))
        result = collect(ranker)[0].results[rewarded.spec.name]
        assert result.scores == (None,) * K
        assert re.search(reason, result.failure or "")
        assert len(server.calls) == asked * calls


@pytest.mark.usefixtures("rank_worker")
@pytest.mark.parametrize("required", [True, False])
def test_an_endpoint_that_is_out_of_order_for_a_moment_costs_no_group(
    required: bool, endpoint: Endpoints, harness: Harness
) -> None:
    """It gives no number once, and is asked again where the group would be lost; who may be left out is."""
    answers = itertools.chain([[float("nan")] * K], itertools.repeat([1.0, 2.0, 3.0, 4.0]))
    server = endpoint(lambda call: (200, {}, ranking(call, next(answers))))
    ranker = harness.ranker(reward(server, f"slips-{required}", required=required))
    ranker.submit(group("g"))
    (result,) = collect(ranker)[0].results.values()
    assert result.scores == ((1.0, 2.0, 3.0, 4.0) if required else (None,) * K)


@pytest.mark.usefixtures("rank_worker")
def test_an_endpoint_may_only_rank(endpoint: Endpoints, harness: Harness) -> None:
    """Ranks without any score are an order: negated, so that more is better, and marked as no more than that."""

    def people(call: Call) -> Answer:
        answer = json.loads(ranking(call, [None] * K))
        for item, place in zip(answer["results"], [2, 1, None, 2], strict=True):
            item.update(rank=place, error=item["error"] if place is None else None)
        return 200, {}, json.dumps(answer)

    ranker = harness.ranker(reward(endpoint(people), "ordinal"))
    ranker.submit(group("g"))
    result = collect(ranker)[0].results["ordinal"]
    assert result.scores == (-2.0, -1.0, None, -2.0)
    assert result.ordinal
    assert result.failure is None
    assert result.errors == {2: "unreadable: no face"}


@pytest.mark.usefixtures("rank_worker")
def test_scores_that_are_not_calibrated_are_an_order(endpoint: Endpoints, harness: Harness) -> None:
    """The scores of an endpoint that says so count as an order: as they are, and marked as no more than that."""
    ranker = harness.ranker(reward(endpoint(good, calibrated=False), "uncalibrated"), reward(endpoint(good), "plain"))
    ranker.submit(group("g"))
    results = collect(ranker)[0].results
    assert results["uncalibrated"].scores == results["plain"].scores
    assert (results["uncalibrated"].ordinal, results["plain"].ordinal) == (True, False)


@pytest.mark.usefixtures("rank_worker")
def test_what_an_endpoint_says_of_its_weights_comes_with_its_scores(endpoint: Endpoints, harness: Harness) -> None:
    """Unverified, verified, or nothing said: the trainer learns it with the first answer."""
    said = {"unverified": False, "verified": True, "silent": None}
    ranker = harness.ranker(*(reward(endpoint(good, verified=each), name) for name, each in said.items()))
    ranker.submit(group("g"))
    assert {name: result.verified for name, result in collect(ranker)[0].results.items()} == said


@pytest.mark.usefixtures("rank_worker")
def test_single_nulls_stay_nulls(endpoint: Endpoints, harness: Harness) -> None:
    """One candidate without a score is None with its reason; the others count."""
    server = endpoint(lambda call: (200, {}, ranking(call, [3.0, None, 1.0, 2.0])))
    ranker = harness.ranker(reward(server, "nulls"))
    ranker.submit(group("g"))
    result = collect(ranker)[0].results["nulls"]
    assert result.scores == (3.0, None, 1.0, 2.0)
    assert result.sub_scores == {"half": (0.5, None, 0.5, 0.5)}
    assert result.errors == {1: "unreadable: no face"}


# ---- failures that pass -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rank_worker")
def test_a_busy_endpoint_is_asked_again(endpoint: Endpoints, harness: Harness) -> None:
    """503 with Retry-After is not a failure while the deadline allows another try."""
    busy = endpoint(lambda call: good(call) if call.number else (503, {"Retry-After": "1"}, "{}"))
    ranker = harness.ranker(reward(busy, "busy", required=False))
    ranker.submit(group("g"))
    assert collect(ranker)[0].results["busy"].scores == (0.0, 1.0, 2.0, 3.0)
    assert len(busy.calls) == 2


@pytest.mark.usefixtures("rank_worker")
def test_groups_that_fail_in_passing_hold_no_thread(endpoint: Endpoints, harness: Harness) -> None:
    """More groups than a lane has threads are told to come back; another group of the same reward is ranked at once."""

    def choosy(call: Call) -> Answer:
        return good(call) if call.prompt == "prompt fine" else (503, {"Retry-After": "3"}, "{}")

    ranker = harness.ranker(reward(endpoint(choosy), "choosy", required=False, timeout_s=14))
    for index in range(12):
        ranker.submit(group(f"g{index}", index))
    assert ranker.collect(2) is None
    ranker.submit(group("fine", 99))
    started = time.monotonic()
    assert collect(ranker)[0].group_id == "fine"
    assert time.monotonic() - started < 9
    for ranked in collect(ranker, 12):
        assert re.search("timeout.*answered 503", ranked.results["choosy"].failure or "")


@pytest.mark.usefixtures("rank_worker")
def test_a_pending_ranking_that_its_endpoint_forgot_is_posted_anew(endpoint: Endpoints, harness: Harness) -> None:
    """404 on the Location, as after a restart: the same question is asked again with the same key."""

    def forgetful(call: Call) -> Answer:
        if call.number == -1:
            return 404, {}, "{}"
        pending = json.dumps({"id": "rk_1", "object": "ranking", "status": "pending"})
        return good(call) if call.number else (202, {"Location": "/v1/rankings/rk_1", "Retry-After": "0"}, pending)

    server = endpoint(forgetful)
    ranker = harness.ranker(reward(server, "forgetful"))
    ranker.submit(group("g"))
    assert collect(ranker)[0].results["forgetful"].scores == (0.0, 1.0, 2.0, 3.0)
    assert len({call.headers["idempotency-key"] for call in server.calls}) == 1


@pytest.mark.usefixtures("rank_worker")
def test_a_dead_required_reward_is_waited_for_until_its_deadline(endpoint: Endpoints, harness: Harness) -> None:
    """Refused connections stop the job at the deadline, not before; an endpoint back in time saves the group."""
    gone = endpoint()
    gone.close()
    patient = harness.ranker(reward(gone, "dead", timeout_s=60))
    patient.submit(group("g"))
    assert patient.collect(1) is None
    endpoint(port=gone.server.server_port)
    assert collect(patient)[0].results["dead"].failure is None

    gone = endpoint()
    gone.close()
    ranker = harness.ranker(reward(gone, "dead", timeout_s=3), job="strict")
    started = time.monotonic()
    ranker.submit(group("g"))
    with pytest.raises(RewardUnavailable, match="dead"):
        collect(ranker)
    assert time.monotonic() - started >= 3


@pytest.mark.usefixtures("rank_worker")
def test_a_dead_optional_reward_is_left_out(endpoint: Endpoints, harness: Harness) -> None:
    """The reason says that nobody listens there."""
    gone = endpoint()
    gone.close()
    ranker = harness.ranker(reward(endpoint(), "alive"), reward(gone, "absent", required=False, timeout_s=4))
    ranker.submit(group("g"))
    assert re.search("transport|circuit|timeout", collect(ranker)[0].results["absent"].failure or "")


@pytest.mark.usefixtures("rank_worker")
def test_a_slow_ranker_is_asked_by_short_tasks(endpoint: Endpoints, harness: Harness) -> None:
    """A 202 is looked after until it is done, and the answer is as good as any."""
    asked = time.monotonic()

    def slow(call: Call) -> Answer:
        if time.monotonic() - asked > 3:
            return good(call)
        pending = json.dumps({"id": "rk_1", "object": "ranking", "status": "pending"})
        return 202, {"Location": "/v1/rankings/rk_1", "Retry-After": "1"}, pending

    ranker = harness.ranker(reward(endpoint(slow), "people"))
    ranker.submit(group("g"))
    assert collect(ranker)[0].results["people"].scores == (0.0, 1.0, 2.0, 3.0)


@pytest.mark.usefixtures("rank_worker")
def test_a_pending_ranking_is_asked_for_while_the_trainer_computes(endpoint: Endpoints, harness: Harness) -> None:
    """A trainer that only looks in asks again what is due, also where each look finds another group finished."""
    polled = threading.Event()

    def slow(call: Call) -> Answer:
        if call.number == -1:
            polled.set()
            return good(call)
        pending = json.dumps({"id": "rk_1", "object": "ranking", "status": "pending"})
        return (202, {"Location": "/v1/rankings/rk_1"}, pending) if call.prompt == "prompt slow" else good(call)

    server = endpoint(slow)
    ranker = harness.ranker(reward(server, "computing"), resend_s=60)
    for value, name in enumerate(["slow", "a", "b", "c"]):
        ranker.submit(group(name, value))
    until = time.monotonic() + 50
    while len(server.calls) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    taken: list[str] = []
    while len(taken) < 3:
        time.sleep(1.5)
        if (ranked := ranker.collect(0.0)) is not None:
            taken.append(ranked.group_id)
    assert polled.wait(10), "three finished groups were taken, and what was due was not asked"
    while (last := ranker.collect(0.0)) is None:
        time.sleep(0.5)
    assert last.group_id == "slow"


# ---- losses -------------------------------------------------------------------------------------------------------


def other_database(redis_url: str, number: int) -> str:
    """A Redis database of its own, which the module's rank worker does not serve."""
    return redis_url.removesuffix("/0") + f"/{number}"


def test_messages_are_json_and_carry_references(harness: Harness) -> None:
    """Images are stored once for all rewards and expire; a message names them, and holds neither pixels nor keys."""
    harness.settings = PlatformSettings(redis_url=other_database(harness.settings.redis_url, 1), candidate_ttl_s=60)
    ranker = harness.ranker(reward("http://127.0.0.1:1", "a"), reward("http://127.0.0.1:1", "b"))
    one = group("g")
    ranker.submit(one)
    ranker.submit(CandidateGroup(**{**vars(one), "id": "h"}))
    client = redis.Redis.from_url(harness.settings.redis_url)
    stored = client.keys("dipole:candidates:*")
    assert len(stored) == 1
    assert 0 < client.ttl(stored[0]) <= 60
    assert (CandidateStore(client, 60).get(stored[0].decode().removeprefix("dipole:candidates:")) == one.images).all()
    messages = [json.loads(each) for name in ("a", "b") for each in client.lrange(f"rank.{name}", 0, -1)]
    assert len(messages) == 4
    for message in messages:
        assert message["content-type"] == "application/json"
        assert len(message["body"]) < 2000
        assert "a-key" not in json.dumps(message)
        assert message["headers"]["job_id"] == "job"
    (record,) = [json.loads(client.get(each) or b"") for each in client.keys("dipole:run:*")]
    assert set(record) == {"rewards"}
    ranker.cancel()
    assert client.keys("dipole:run:*") == []
    assert client.keys("dipole:candidates:*") == []
    client.flushdb()
    client.close()


def test_keys_lie_sealed_in_redis_and_open_in_the_rank_worker(endpoint: Endpoints, harness: Harness) -> None:
    """With DIPOLE_SECRETS_KEY nothing in Redis holds a key, and the endpoint gets it.

    A rank worker without the setting says so, and the ranking is asked again: another may have it.
    """
    url, server, secret = other_database(harness.settings.redis_url, 6), endpoint(), Fernet.generate_key().decode()
    harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
    ranker = harness.ranker(reward(server, "sealed", timeout_s=120), vault=Vault(secret))
    ranker.submit(group("g"))
    with redis.Redis.from_url(url) as client:
        stored = b"".join(client.dump(key) or b"" for key in client.scan_iter())
        assert b"fernet:" in stored
        assert b"a-key-of-the-endpoint" not in stored
        with running_rank_worker(url):
            until = time.monotonic() + 60
            while not any("DIPOLE_SECRETS_KEY" in reason for reason in reasons(ranker)):
                assert ranker.collect(0.2) is None
                assert time.monotonic() < until, reasons(ranker)
        with running_rank_worker(url, DIPOLE_SECRETS_KEY=secret):
            collect(ranker)
        client.flushdb()
    assert {call.headers["authorization"] for call in server.calls} == {"Bearer a-key-of-the-endpoint"}


def test_redis_sends_no_key_to_a_host_that_is_not_allowed(endpoint: Endpoints, harness: Harness) -> None:
    """Whoever can write to Redis names no host to a rank worker: neither by a run's record nor by a message.

    127.0.0.2 is reached here as 127.0.0.1 is, and is not in DIPOLE_REWARD_HOSTS.
    """
    server = endpoint(host="0.0.0.0")
    elsewhere = f"http://127.0.0.2:{server.server.server_port}"
    url = other_database(harness.settings.redis_url, 7)
    harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
    by_record = harness.ranker(reward(elsewhere, "foreign"))
    by_message = harness.ranker(reward(server, "own"))
    by_record.submit(group("record"))
    by_message.submit(group("message"))
    with redis.Redis.from_url(url) as client:
        (message,) = client.lrange("rank.own", 0, -1)
        envelope = json.loads(message)
        args, kwargs, options = json.loads(base64.b64decode(envelope["body"]))
        kwargs["location"] = f"{elsewhere}/v1/rankings/rk_1"
        envelope["body"] = base64.b64encode(json.dumps([args, kwargs, options]).encode()).decode()
        client.lset("rank.own", 0, json.dumps(envelope))
        with running_rank_worker(url):
            refused = r"in the rank worker, url names 127\.0\.0\.2 port \d+, which DIPOLE_REWARD_HOSTS does not allow"
            with pytest.raises(RewardUnavailable, match=refused):
                collect(by_record)
            with pytest.raises(RewardUnavailable, match="location is not on"):
                collect(by_message)
        client.flushdb()
    assert server.hosts == []


def test_lost_images_and_lost_messages_are_sent_again(endpoint: Endpoints, harness: Harness) -> None:
    """Images whose time was up are stored anew, and messages that vanished are sent anew."""
    harness.settings = PlatformSettings(redis_url=other_database(harness.settings.redis_url, 2), candidate_ttl_s=60)
    server = endpoint()
    ranker = harness.ranker(reward(server, "lossy"), resend_s=1)
    client = redis.Redis.from_url(harness.settings.redis_url)
    ranker.submit(group("images"))
    (key,) = client.keys("dipole:candidates:*")
    client.delete(key)
    with pytest.raises(MissingCandidates):
        CandidateStore(client, 60).get(key.decode().removeprefix("dipole:candidates:"))
    ranker.submit(group("all", 9))
    client.flushdb()
    with start_rank_worker(harness.settings.redis_url) as worker:
        assert {ranked.group_id for ranked in collect(ranker, 2)} == {"images", "all"}
        worker.terminate()
    client.close()


def test_a_duplicate_is_answered_once(endpoint: Endpoints, harness: Harness) -> None:
    """However often a message is delivered, the endpoint is asked once and the group comes back once."""
    harness.settings = PlatformSettings(redis_url=other_database(harness.settings.redis_url, 5), candidate_ttl_s=60)

    def slow(call: Call) -> Answer:
        time.sleep(1)
        return good(call)

    server = endpoint(slow)
    ranker = harness.ranker(reward(server, "twice"))
    ranker.submit(group("g"))
    client = redis.Redis.from_url(harness.settings.redis_url)
    (message,) = client.lrange("rank.twice", 0, -1)
    for number in range(3):
        copy = json.loads(message)
        copy["properties"]["delivery_tag"] = f"copy-{number}"
        client.rpush("rank.twice", json.dumps(copy))
    client.close()
    with start_rank_worker(harness.settings.redis_url) as worker:
        collect(ranker)
        assert ranker.collect(2) is None
        worker.terminate()
    assert len(server.calls) == 1


@pytest.mark.usefixtures("rank_worker")
def test_a_resumed_job_gets_the_answer_it_had(endpoint: Endpoints, harness: Harness) -> None:
    """The same question by a later incarnation is not asked again; other images under the same name are."""
    server = endpoint()
    rewarded = reward(server, "resumed")
    first = harness.ranker(rewarded)
    first.submit(group("g"))
    before = collect(first)[0].results["resumed"]
    second = harness.ranker(rewarded)
    second.submit(group("g"))
    assert collect(second)[0].results["resumed"] == before
    assert len(server.calls) == 1
    third = harness.ranker(rewarded)
    third.submit(group("g", value=8))
    collect(third)
    assert len(server.calls) == 2


@pytest.mark.usefixtures("rank_worker")
def test_cancelled_groups_are_forgotten(endpoint: Endpoints, harness: Harness) -> None:
    """After cancel the old answers go nowhere, and the same group may be asked again."""

    def slow(call: Call) -> Answer:
        time.sleep(1)
        return good(call)

    ranker = harness.ranker(reward(endpoint(slow), "forgotten"))
    ranker.submit(group("old"))
    assert ranker.collect(0.3) is None
    ranker.cancel()
    ranker.submit(group("new", 1))
    assert [ranked.group_id for ranked in collect(ranker)] == ["new"]
    assert ranker.collect(2) is None


@pytest.mark.parametrize("victim", ["lane", "worker"])
def test_a_killed_rank_worker_loses_nothing(victim: str, endpoint: Endpoints, harness: Harness) -> None:
    """kill -9 in the middle of a request: the question is asked again, under the same idempotency key."""
    harness.settings = PlatformSettings(redis_url=other_database(harness.settings.redis_url, 3), candidate_ttl_s=60)
    reached = threading.Event()

    def die_first(call: Call) -> Answer:
        reached.set()
        if call.number == 0:
            time.sleep(30)
        return good(call)

    server = endpoint(die_first)
    ranker = harness.ranker(reward(server, f"killed-{victim}"), resend_s=1)
    with start_rank_worker(harness.settings.redis_url) as worker:
        ranker.submit(group("g"))
        assert reached.wait(60)
        lanes = psutil.Process(worker.pid).children()
        if victim == "lane":
            for lane in lanes:
                lane.kill()
        else:
            os.kill(worker.pid, signal.SIGKILL)
            psutil.wait_procs(lanes, timeout=10)
            assert not any(lane.is_running() for lane in lanes)
            other = start_rank_worker(harness.settings.redis_url)
        ranked = collect(ranker)[0]
        assert ranked.results[f"killed-{victim}"].scores == (0.0, 1.0, 2.0, 3.0)
        worker.terminate()
    if victim == "worker":
        other.terminate()
        other.wait()
    assert len({call.headers["idempotency-key"] for call in server.calls}) == 1


def test_a_restarted_redis_loses_nothing(
    endpoint: Endpoints, harness: Harness, redis_server: Callable[..., Any], tmp_path: Any
) -> None:
    """Redis dies with all it held and comes back empty: the group is still ranked."""
    first_reached = threading.Event()

    def slow(call: Call) -> Answer:
        first_reached.set()
        time.sleep(1)
        return good(call)

    with redis_server(tmp_path) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
        ranker = harness.ranker(reward(endpoint(slow), "restarted"), resend_s=1)
        worker = start_rank_worker(url)
        ranker.submit(group("g"))
        assert first_reached.wait(60)
    assert ranker.collect(1) is None
    ranker.submit(group("h", 1))
    with redis_server(tmp_path, port):
        assert {ranked.group_id for ranked in collect(ranker, 2)} == {"g", "h"}
        ranker.close()
        worker.terminate()
        worker.wait()


def test_a_redis_that_restarts_twice_costs_seconds(
    endpoint: Endpoints, harness: Harness, redis_server: Callable[..., Any], tmp_path: Any
) -> None:
    """Twice emptied while a group is asked for: it is asked again when Redis is back, not after a silence.

    The first silence would be longer than the deadline here, and each message is sent but once as far as Redis knows.
    """
    reached = threading.Event()

    def slow(call: Call) -> Answer:
        reached.set()
        time.sleep(1)
        return good(call)

    server = endpoint(slow)
    with contextlib.ExitStack() as stack:
        living = stack.enter_context(contextlib.ExitStack())
        url = living.enter_context(redis_server(tmp_path))
        port = int(url.rpartition(":")[2].partition("/")[0])
        harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
        ranker = harness.ranker(reward(server, "twice-restarted", timeout_s=50), resend_s=60)
        stack.enter_context(running_rank_worker(url))
        ranker.submit(group("before"))
        collect(ranker)
        reached.clear()
        ranker.submit(group("g"))
        assert reached.wait(60)
        living.close()
        ranked = [ranker.collect(1)]
        living.enter_context(redis_server(tmp_path, port))
        ranked.append(ranker.collect(1.5))
        living.close()
        ranked.append(ranker.collect(1))
        ranker.submit(group("h", 1))
        living.enter_context(redis_server(tmp_path, port))
        early = [each.group_id for each in ranked if each is not None]
        late = [each.group_id for each in collect(ranker, 2 - len(early))]
        assert sorted(early + late) == ["g", "h"]
        ranker.close()


def test_a_redis_without_memory_is_not_said_to_be_silent(
    harness: Harness, redis_server: Callable[..., Any], tmp_path: Any
) -> None:
    """Whoever waited for a ranking reads what Redis refused, and what helps."""
    with redis_server(tmp_path, None, "--maxmemory", "1") as url:
        harness.settings = PlatformSettings(redis_url=url)
        ranker = harness.ranker(reward("http://127.0.0.1:1", "r", timeout_s=2))
        ranker.submit(group("g"))
        with pytest.raises(RewardUnavailable, match=r"Redis answers with an error \(OutOfMemoryError.*maxmemory"):
            collect(ranker)


def test_what_redis_did_not_take_was_not_sent(
    harness: Harness, redis_server: Callable[..., Any], tmp_path: Any
) -> None:
    """However often Redis refused it meanwhile, the first message on the queue is the first, with its pause."""
    with redis_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
        ranker = harness.ranker(reward("http://127.0.0.1:1", "r", timeout_s=60), resend_s=60)
        ranker.submit(group("taken"))
        client.config_set("maxmemory", "1")
        ranker.submit(group("refused", 1))
        for _ in range(3):
            assert ranker.collect(1.1) is None
        client.config_set("maxmemory", "0")
        until = time.monotonic() + 30
        while client.llen("rank.r") < 2 and time.monotonic() < until:
            ranker.collect(0.2)
        numbers = [json.loads(each)["headers"]["id"].rpartition(".")[2] for each in client.lrange("rank.r", 0, -1)]
        assert numbers == ["1", "1"]
        ranker.close()


def test_rankings_come_back_over_tls(
    endpoint: Endpoints, harness: Harness, redis_url: str, tls_proxy: Callable[..., Any], tmp_path: Any
) -> None:
    """Ranker, rank worker and its lane speak TLS to a Redis whose certificate is of an authority of one's own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tls_proxy(context, int(redis_url.rpartition(":")[2].partition("/")[0])) as port:
        url = f"rediss://127.0.0.1:{port}/8?ssl_ca_certs={tmp_path}/ca.pem"
        harness.settings = PlatformSettings(redis_url=url, candidate_ttl_s=60)
        with running_rank_worker(url):
            ranker = harness.ranker(reward(endpoint(), "secret"))
            ranker.submit(group("g"))
            assert collect(ranker)[0].results["secret"].scores == (0.0, 1.0, 2.0, 3.0)
            ranker.close()


def test_without_redis_a_required_reward_is_unavailable(harness: Harness) -> None:
    """Redis that never answers stops the job at the deadline, with that reason."""
    harness.settings = PlatformSettings(redis_url="redis://127.0.0.1:1/0")
    ranker = harness.ranker(reward("http://127.0.0.1:1", "r", timeout_s=2))
    ranker.submit(group("g"))
    with pytest.raises(RewardUnavailable, match="Redis does not answer"):
        collect(ranker)


def test_health_is_told_by_a_command(redis_url: str) -> None:
    """`--check` exits 0 once a rank worker beats on this host, and 1 with a sentence when none does.

    With `--live` an outage of Redis is no reason to restart, a rank worker that does not beat is.
    """
    command = [sys.executable, "-m", "dipole.cli", "serve", "rank-worker", "--check"]
    environment = {**os.environ, "DIPOLE_REDIS_URL": other_database(redis_url, 4)}
    sick = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert sick.returncode == 1
    assert "no rank worker" in sick.stderr
    away = {**environment, "DIPOLE_REDIS_URL": "redis://127.0.0.1:1/0"}
    assert subprocess.run(command, env=away, capture_output=True, check=False).returncode == 1
    assert subprocess.run([*command, "--live"], env=environment, capture_output=True, check=False).returncode == 1
    assert subprocess.run([*command, "--live"], env=away, capture_output=True, check=False).returncode == 0
    with start_rank_worker(environment["DIPOLE_REDIS_URL"]) as worker:
        until = time.monotonic() + 60
        while subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < until
        worker.terminate()
    assert worker.returncode == 0
