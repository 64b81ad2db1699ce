"""Rewards that hang, and rewards that take their time: real Redis, a real rank worker, real HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from dipole.broker.celery_app import create_celery_app
from dipole_trainer.ranking import celery_ranker
from dipole_trainer.ranking.celery_ranker import CeleryRanker
from dipole_trainer.ranking.groups import RankingBacklog
from dipole_trainer.ranking.in_flight import MAX_LATE_GROUPS
from dipole_trainer.ranking.withdrawable_rankings import WithdrawableRankings

from .people_server import PeopleServer
from .ranking_harness import Answer, Call, Endpoints, Harness, collect, good, group, reward

pytestmark = pytest.mark.usefixtures("rank_worker")
_NOTHING = RankingBacklog({})


@pytest.fixture
def people() -> Iterator[PeopleServer]:
    server = PeopleServer()
    yield server
    server.close()


def look_until(ranker: CeleryRanker, happened: Callable[[], bool], seconds: float = 60) -> None:
    """Look in, as a trainer that computes does, until something has happened and no group has finished."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        assert ranker.collect(0.05) is None


# ---- silence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{"weight": 0}, {"required": False}], ids=["watched", "optional"])
def test_a_reward_that_hangs_costs_its_deadline_once(
    spec: dict[str, object], endpoint: Endpoints, harness: Harness, request: pytest.FixtureRequest
) -> None:
    """Later groups do not wait for it, and of all of them it is said once. Once it answers, late as that may be, its
    scores are kept, and groups wait for it again.
    """
    healed = threading.Event()

    def hang(call: Call) -> Answer:
        healed.wait(120)
        return good(call)

    name = f"hangs-{request.node.callspec.id}"
    deadline_s = 12.0
    dead = reward(endpoint(hang), name, timeout_s=deadline_s, **spec)
    ranker = harness.ranker(reward(endpoint(), "alive"), dead)
    ranker.submit(group("g0", 0))
    (first,) = collect(ranker)
    assert list(first.became_silent) == [name]
    count = 3 * MAX_LATE_GROUPS
    for index in range(1, count):
        ranker.submit(group(f"g{index}", index))
    began = time.monotonic()
    later = collect(ranker, count - 1)
    assert time.monotonic() - began < deadline_s, "a later group waited for a reward that is silent"
    events: list[tuple[str, dict[str, object]]] = []
    for ranked in (first, *later):
        ranked.report_failures(0, lambda kind, data: events.append((kind, data)))
        assert ranked.results["alive"].failure is None
        assert (ranked.results[name].failure or "").startswith("silent:")
    assert [(kind, data["reward"]) for kind, data in events] == [("reward_silent", name)]
    healed.set()
    look_until(ranker, lambda: any(given == name for _, given, _ in harness.ranked))
    ranker.submit(group("after", 200))
    (after,) = collect(ranker)
    assert after.results[name].scores == (0.0, 1.0, 2.0, 3.0)
    assert list(after.came_back) == [name]


def test_a_reward_that_alone_is_trained_on_is_waited_for(endpoint: Endpoints, harness: Harness) -> None:
    """Without it nothing is left to train on, so each group waits for its deadline; it is told once."""
    hanging = endpoint(lambda call: (hanging.closing.wait(60), good(call))[1])
    ranker = harness.ranker(
        reward(hanging, "lonely", required=False, timeout_s=2), reward(endpoint(), "beside", weight=0)
    )
    ranker.submit(group("g0", 0))
    collect(ranker)
    ranker.submit(group("g1", 1))
    assert ranker.collect(0.5) is None
    (second,) = collect(ranker)
    assert not second.became_silent


# ---- people -------------------------------------------------------------------------------------------------------


def test_hundreds_of_pending_groups_cost_little(harness: Harness, people: PeopleServer) -> None:
    """Their images leave Redis, they are looked at MAX_POLLS_PER_S times a second in all, and no lane is held: what is
    ranked at last comes, in the order that people chose.
    """
    count = 200
    ranker = harness.ranker(reward(people.url, "crowd", timeout_s=3600))
    for index in range(count):
        ranker.submit(group(f"g{index}", index))
    look_until(ranker, lambda: len(ranker.list_pending().get("crowd", _NOTHING).waiting) == count, 120)
    with redis.Redis.from_url(harness.settings.redis_url) as client:
        look_until(ranker, lambda: client.keys("dipole:candidates:*") == [])
    before, began = people.polls, time.monotonic()
    # in which none is looked at more than twice, however many had their turn at the same moment
    assert ranker.collect(count / celery_ranker.MAX_POLLS_PER_S) is None
    assert people.polls - before <= 2 * celery_ranker.MAX_POLLS_PER_S * (time.monotonic() - began)
    people.answer("prompt g150")
    (ranked,) = collect(ranker)
    assert ranked.group_id == "g150"
    assert ranked.results["crowd"].scores == (-4.0, -3.0, -2.0, -1.0)
    assert ranked.results["crowd"].ordinal
    pending = ranker.list_pending()["crowd"]
    assert pending.answered == 1
    assert pending.per_minute is not None
    assert max(pending.waiting.values()) > 0


def test_a_group_that_people_leave_pending_is_dropped_and_withdrawn(harness: Harness, people: PeopleServer) -> None:
    """Past its deadline, also where the reward is required: the job goes on, and no rater works on it for nothing."""
    awake = harness.ranker(reward(people.url, "asleep", timeout_s=3600))
    awake.submit(group("first", 1))
    look_until(awake, lambda: bool(awake.list_pending()))  # from here on a lane stands
    ranker = harness.ranker(reward(people.url, "asleep", timeout_s=8))
    ranker.submit(group("g"))
    (ranked,) = collect(ranker)
    assert (ranked.results["asleep"].failure or "").startswith("late:")
    look_until(ranker, lambda: people.withdrawn == ["prompt g"])


def test_a_resumed_job_finds_the_task_that_raters_have(harness: Harness, people: PeopleServer) -> None:
    """kill -9 or a pause: the same group is the same task, which is not withdrawn; a cancelled job withdraws it."""
    first = harness.ranker(reward(people.url, "resumed-people", timeout_s=3600))
    first.submit(group("g"))
    look_until(first, lambda: bool(first.list_pending()))
    first.close()
    second = harness.ranker(reward(people.url, "resumed-people", timeout_s=3600))
    second.submit(group("g"))
    second.submit(group("h", 1))
    look_until(second, lambda: len(second.list_pending().get("resumed-people", _NOTHING).waiting) == 2)
    assert people.prompts == ["prompt g", "prompt h"]
    people.answer("prompt g")
    assert collect(second)[0].group_id == "g"
    assert people.withdrawn == []
    second.cancel(withdraw=True)
    look_until(second, lambda: people.withdrawn == ["prompt h"])


def test_what_a_paused_job_left_is_withdrawn_by_whoever_cancels_it(harness: Harness, people: PeopleServer) -> None:
    """Nobody holds its run then; what was answered meanwhile is left alone."""
    ranker = harness.ranker(reward(people.url, "left-people", timeout_s=3600), job="left")
    for index, name in enumerate("gh"):
        ranker.submit(group(name, index))
    look_until(ranker, lambda: len(ranker.list_pending().get("left-people", _NOTHING).waiting) == 2)
    people.answer("prompt g")
    assert collect(ranker)[0].group_id == "g"
    ranker.close()
    with redis.Redis.from_url(harness.settings.redis_url) as client:
        pending = WithdrawableRankings(create_celery_app(harness.settings.redis_url), client)
        for _ in range(2):  # the second finds nothing
            pending.withdraw("left")
        pending.close()
        assert client.keys("dipole:pending:left") == []
    until = time.monotonic() + 60
    while not people.withdrawn and time.monotonic() < until:
        time.sleep(0.05)
    assert people.withdrawn == ["prompt h"]


def test_people_see_what_a_model_chose(endpoint: Endpoints, harness: Harness, people: PeopleServer) -> None:
    """They are asked for the best and the worst alone, once the model has ranked; others are null, with a reason."""
    shown = {"by": "model", "best": 1, "worst": 1}
    ranker = harness.ranker(reward(people.url, "chosen", shows=shown, timeout_s=3600), reward(endpoint(), "model"))
    ranker.submit(group("g"))
    look_until(ranker, lambda: bool(ranker.list_pending()))
    assert people.counts == {"t0": 2}
    people.answer("prompt g")
    (ranked,) = collect(ranker)
    assert ranked.results["chosen"].scores == (-2.0, None, None, -1.0)
    assert ranked.results["chosen"].errors[1].startswith("not_shown:")
    assert ranked.results["model"].scores == (0.0, 1.0, 2.0, 3.0)
