"""How reward `judge` asks: at what pace, with what patience, until when, at what price."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import numpy as np
import pytest

from .scripted_judge import (
    Answer,
    Judging,
    Question,
    Start,
    codes,
    judge,
    prefers_bright,
    refusal,
    says_yes,
    score,
    where,
)


def test_no_more_requests_are_in_flight_than_allowed(start: Start) -> None:
    """Four groups at once share the limit, and use all of it."""
    server = start(lambda question: Answer(says_yes(question).body, after_s=0.02))
    reward = judge(server, judge_concurrency=3)
    with ThreadPoolExecutor(4) as groups:
        given = list(groups.map(lambda shade: score(reward, *range(shade, shade + 6)), range(0, 40, 10)))
    assert server.most_in_flight == 3
    assert all(scores.errors == {} for scores in given)
    assert [scores.usage["calls"] for scores in given] == [6] * 4


def test_requests_are_as_far_apart_as_the_rate_says(start: Start) -> None:
    """600 a minute: of all groups together the n-th is not before n tenths of a second. One that was held up on its way
    may be near the next.
    """
    server = start(says_yes)
    reward = judge(server, judge_requests_per_minute=600)
    with ThreadPoolExecutor(2) as groups:
        list(groups.map(lambda shade: score(reward, shade, shade + 1, shade + 2), (0, 10)))
    began = sorted(question.began for question in server.questions)
    assert len(began) == 7
    assert all(at - began[0] > place / 10 - 0.08 for place, at in enumerate(began)), np.diff(began)


@pytest.mark.parametrize(("status", "is_date"), [(429, False), (503, True)])
def test_an_overloaded_endpoint_is_left_alone_as_long_as_it_says(status: int, is_date: bool, start: Start) -> None:
    """Retry-After, in seconds or as a date, holds back every request, not one alone, more often than other failures are
    forgiven; in the end all images have scores."""
    refused: list[float] = []

    def busy(question: Question) -> Answer:
        if len(server.questions) in (2, 6, 10):
            refused.append(time.monotonic())
            return refusal(status, Retry_After=formatdate(time.time() + 2) if is_date else "1")
        return says_yes(question)

    server = start(busy)
    reward = judge(server, judge_concurrency=1, judge_retries=0)
    scores = score(reward, *range(12))
    assert len(refused) == 3
    assert scores.errors == {}
    assert scores.usage["calls"] == 15
    for moment in refused:
        following = [question.began - moment for question in server.questions if question.began > moment]
        assert min(following) > 0.9


@pytest.mark.usefixtures("quick")
def test_passing_failures_are_tried_again(start: Start) -> None:
    """500s and broken answers, as often as the setting says, and no more."""
    server = start(says_yes)
    reward = judge(server, judge_retries=2)
    answers = iter([refusal(500), Answer(b"?"), says_yes])
    server.judging = lambda question: made(question) if callable(made := next(answers)) else made
    assert score(reward, 100).usage["calls"] == 3
    server.judging = lambda _: refusal(502)
    scores = score(reward, 100)
    assert scores.usage["calls"] == 3
    assert codes(scores) == {0: "http_status"}


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400),
        refusal(404),
        refusal(429, Retry_After="3600"),
        Answer({"error": {"message": "no money", "code": "insufficient_quota"}}, 429),
    ],
)
def test_what_waiting_cannot_mend_is_not_tried_again(answer: Answer, start: Start) -> None:
    """A request that is wrong, money that is spent, or a wait beyond the group's deadline, fail at once."""
    server = start(says_yes)
    reward = judge(server)
    server.judging = lambda _: answer
    scores = score(reward, 100)
    assert scores.usage["calls"] == 1
    assert codes(scores) == {0: "http_status"}
    server.judging = says_yes
    assert score(reward, 100).errors == {}  # and holds nobody else back


def test_a_group_ends_at_its_deadline(start: Start) -> None:
    """Whatever hangs or is refused then is null with `timeout`; what was judged stands, and so does the next
    group."""
    dark: Judging = lambda question: Answer({}, after_s=60)  # noqa: E731
    server = start(where(lambda question: question.brightnesses == [9], says_yes, dark))
    reward = judge(server, judge_deadline_s=3, judge_concurrency=2)
    scores = score(reward, 9, 100, 9, 200)
    assert codes(scores)[0] == codes(scores)[2] == "timeout"
    assert score(reward, 100, 200).errors == {}
    server.judging = lambda _: refusal(503, "warming up")
    scores = score(reward, 100)
    assert codes(scores) == {0: "timeout"}
    assert "503: warming up" in scores.errors[0].message


def test_a_tournament_ends_at_its_deadline_too(start: Start) -> None:
    """What was compared until then orders the group, and nothing is asked any more."""
    places = itertools.count(1)  # of the questions: the number that the server has may be ahead of the one it judges

    def slowing(question: Question) -> Answer:
        return Answer(prefers_bright(question).body, after_s=60 if next(places) > 60 else 0)

    server = start(slowing)
    reward = judge(server, judge_mode="pairwise", judge_deadline_s=5, judge_concurrency=4)
    scores = score(reward, *range(0, 240, 20))
    assert None not in scores.scores
    assert np.corrcoef(np.array(scores.scores, float), range(12))[0, 1] > 0.9
    assert len(server.questions) == scores.usage["calls"] + 1 == 64


def test_usage_has_its_price(start: Start) -> None:
    """Tokens of the group's answers times the prices of a million; a failed request has no price."""
    server = start(says_yes)
    prices = {"judge_usd_per_million_prompt_tokens": 2.5, "judge_usd_per_million_completion_tokens": 10}
    reward = judge(server, **prices)
    server.judging = where(lambda question: question.brightnesses == [9], says_yes, lambda _: refusal(400))
    usage = score(reward, 9, 10, 20).usage
    assert usage == {
        "calls": 3, "prompt_tokens": 200, "completion_tokens": 14, "cost_usd": (200 * 2.5 + 14 * 10) / 1e6
    }  # fmt: skip


def test_an_endpoint_that_does_not_count_has_no_price(start: Start) -> None:
    """Unknown is not 0."""

    def uncounted(question: Question) -> Answer:
        body = says_yes(question).body
        assert isinstance(body, dict)
        return Answer({**body, "usage": None})

    prices = {"judge_usd_per_million_prompt_tokens": 2.5, "judge_usd_per_million_completion_tokens": 10}
    assert score(judge(start(uncounted), **prices), 9, 10).usage == {"calls": 2}
