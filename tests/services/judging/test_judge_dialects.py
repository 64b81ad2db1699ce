"""What servers of OpenAI's shape write in their own ways, and what reward `judge` makes of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dipole.errors import ConfigurationError

from .scripted_judge import (
    Answer,
    Judging,
    Question,
    Start,
    codes,
    completion,
    judge,
    prefers_bright,
    refusal,
    says_yes,
    score,
    writes_numbers,
)

NOT_OFFERED = [400, 403, 404, 405, 415, 422, 500, 501, "in a 200"]


def refuse(status: int | str) -> Answer:
    return Answer({"error": {"message": "not for you"}}, status if isinstance(status, int) else 200)


def lacks(status: int | str, *fields: str) -> Judging:
    """Refuses, with this status, each request that carries one of these fields."""
    return lambda question: refuse(status) if set(fields) & question.body.keys() else writes_numbers(question)


@pytest.mark.parametrize("status", NOT_OFFERED)
@pytest.mark.usefixtures("quick")
def test_a_refusal_of_any_status_to_log_probabilities_means_that_there_are_none(
    status: int | str, start: Start
) -> None:
    """OpenAI's reasoning models say 403, others 404 or 500, or an error in a 200; numbers are written then."""
    server = start(lacks(status, "logprobs"))
    reward = judge(server)
    assert score(reward, 0, 102, 255).scores == [0.0, 0.4, 1.0]
    assert reward.recipe_version.startswith("pointwise-json:")
    assert "response_format" in server.questions[-1].body


@pytest.mark.parametrize("status", NOT_OFFERED)
@pytest.mark.parametrize("mode", ["pointwise", "pairwise", "listwise"])
@pytest.mark.usefixtures("quick")
def test_a_refusal_of_any_status_to_a_schema_means_that_none_is_taken(
    mode: str, status: int | str, start: Start
) -> None:
    """In every mode; the form of answers is then only asked for, and checked."""
    judging = writes_numbers if mode == "pointwise" else prefers_bright
    asked_for_more = {"logprobs", "response_format"}
    server = start(lambda question: refuse(status) if asked_for_more & question.body.keys() else judging(question))
    reward = judge(server, judge_mode=mode)
    scores = score(reward, 10, 200)
    assert scores.errors == {}
    assert scores.scores[0] < scores.scores[1]  # type: ignore[operator]
    assert "response_format" not in server.questions[-1].body


@pytest.mark.parametrize("status", [401, 429, 502, 503, 504])
@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_or_wants_a_key_says_nothing_of_what_it_offers(status: int, start: Start) -> None:
    """It is not taken for one without log probabilities: the start fails and names what it said."""
    server = start(lacks(status, "logprobs"))
    with pytest.raises(ConfigurationError, match="not for you"):
        judge(server, judge_deadline_s=0.4)
    assert all("logprobs" in question.body for question in server.questions)


@pytest.mark.usefixtures("quick")
def test_a_judge_that_refuses_everything_is_told_with_its_last_words(start: Start) -> None:
    """The simplest request counts; what was said to the one before it is told too."""

    def refuses(question: Question) -> Answer:
        return refusal(400, "no schema") if "response_format" in question.body else refusal(403, "no such project")

    with pytest.raises(ConfigurationError) as caught:
        judge(start(refuses))
    assert "403: no such project; before that, the judge's endpoint answered 400: no schema" in str(caught.value)
    assert "DIPOLE_JUDGE_KEY must be a key" in str(caught.value)
    assert "{'" not in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_a_server_that_breaks_off_after_its_error_is_told_by_the_error(start: Start) -> None:
    """And without log probabilities it may still judge: a broken connection says less than the status before it."""

    def breaks(question: Question) -> Answer:
        if "logprobs" not in question.body:
            return writes_numbers(question)
        # every other answer promises more than it sends
        cut = len(server.questions) % 2 == 0
        return Answer(b"{}", 500, {"content-length": "9", "connection": "close"}) if cut else refusal(500, "melted")

    server = start(breaks)
    assert judge(server).recipe_version.startswith("pointwise-json:")


@pytest.mark.usefixtures("quick")
def test_a_refusal_that_does_not_change_is_told_once(start: Start) -> None:
    """With Google's list around it: the same words to three requests are one sentence, and the advice follows."""
    bad_key = Answer([{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}], 400)
    with pytest.raises(ConfigurationError, match=r"answered 400: API key not valid\.; DIPOLE_JUDGE_EXTRA"):
        judge(start(lambda question: bad_key))


@pytest.mark.usefixtures("quick")
def test_an_error_inside_a_choice_is_told_in_its_words(start: Start) -> None:
    """OpenRouter's, where a provider fails while it answers."""
    failed = {
        "error": {"code": 502, "message": "upstream overloaded"},
        "message": {"content": ""},
        "finish_reason": "error",
    }
    with pytest.raises(ConfigurationError, match="answered an error: upstream overloaded"):
        judge(start(lambda question: Answer({"choices": [failed]})), judge_retries=0)


# ---- settings that answer instead of trying out ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"judge_logprobs": True}, [{"logprobs"}]),
        ({"judge_logprobs": False}, [{"response_format"}]),
        ({"judge_logprobs": False, "judge_json_schema": True}, [{"response_format"}]),
        ({"judge_logprobs": False, "judge_json_schema": False}, [set()]),
        ({"judge_mode": "pairwise", "judge_json_schema": False}, [set()]),
        ({"judge_mode": "listwise", "judge_json_schema": True}, [{"response_format"}]),
    ],
)
def test_what_is_set_is_not_tried_out(settings: dict[str, Any], sent: list[set[str]], start: Start) -> None:
    """One request at start, of the form that the settings say."""

    def answers(question: Question) -> Answer:
        if "logprobs" in question.body:
            return says_yes(question)
        return writes_numbers(question) if len(question.shown) == 1 else prefers_bright(question)

    server = start(answers)
    judge(server, **settings)
    assert [{"logprobs", "response_format"} & question.body.keys() for question in server.questions] == sent


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"judge_logprobs": True}, "logprobs"),
        ({"judge_mode": "pairwise", "judge_json_schema": True}, "response_format"),
    ],
)
def test_what_is_set_and_not_offered_fails_at_start(settings: dict[str, Any], lacking: str, start: Start) -> None:
    """Nothing else is tried: whoever set it wants to know."""
    server = start(lacks(403, lacking))
    with pytest.raises(ConfigurationError, match="not for you"):
        judge(server, **settings)
    assert len(server.questions) == 1


# ---- the same said in other words ------------------------------------------------------------------------------------


def changed(answer: Answer, **fields: Any) -> Answer:
    """The completion with other fields; those of `message` and of the choice are put where they belong."""
    body = json.loads(json.dumps(answer.body))
    choice = body["choices"][0]
    choice["message"] |= fields.pop("message", {})
    choice |= fields.pop("choice", {})
    return Answer({**body, **fields})


NUMBER = '{"score": 40}'
SAME: dict[str, dict[str, Any]] = {
    "parts of text": {"message": {"content": [{"type": "text", "text": NUMBER[:4]}, {"text": NUMBER[4:]}]}},
    "thoughts, then text": {"message": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                                                    {"type": "text", "text": NUMBER}]}},
    "bare strings": {"message": {"content": [NUMBER]}},
    "an integer fingerprint": {"system_fingerprint": 7},
    "an object for a fingerprint": {"system_fingerprint": {"build": 7}},
    "no usage": {"usage": None},
    "text for usage": {"usage": "many"},
    "text for counts": {"usage": {"prompt_tokens": "12a", "completion_tokens": -1.5}},
    "a number for a finish": {"choice": {"finish_reason": 3}},
    "an object for a refusal": {"message": {"refusal": {}}},
    "text for logprobs": {"choice": {"logprobs": "none"}},
    "an error that is null": {"error": None},
    "another choice that is none": {"choices": [completion(NUMBER).body["choices"][0], None]},  # type: ignore[index]
    "other fields": {"id": None, "created": "today", "object": 4, "model": None},
}  # fmt: skip


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_an_answer_is_read_whatever_stands_beside_it(fields: dict[str, Any], start: Start) -> None:
    """Strict is what is used of it: the first choice's text."""
    reward = judge(start(lambda _: changed(completion(NUMBER), **fields)), judge_logprobs=False)
    scores = score(reward, 9)
    assert (scores.scores, scores.errors) == ([0.4], {})
    assert reward.model_revision == ("7" if fields.get("system_fingerprint") == 7 else reward.model_revision)


YES, NO = {"token": "yes", "logprob": math.log(0.6)}, {"token": "No", "logprob": math.log(0.2)}
FIRST_TOKENS: dict[str, Any] = {
    "nulls among tokens": {"content": [{"top_logprobs": [None, YES, None, NO]}]},
    "a null before the first": {"content": [None, {"top_logprobs": [YES, NO]}]},
    "a null for a number": {"content": [{"top_logprobs": [YES, NO, {"token": "yes", "logprob": None}]}]},
    "an object of tokens": {"content": [{"top_logprobs": {"yes": YES["logprob"], "No": NO["logprob"], "?": None}}]},
    "as to completions": {"tokens": ["yes"], "top_logprobs": [{"yes": YES["logprob"], "No": NO["logprob"]}]},
    "minus infinity": {"content": [{"top_logprobs": [YES, NO, {"token": "maybe", "logprob": -math.inf}]}]},
}  # fmt: skip


@pytest.mark.parametrize("logprobs", FIRST_TOKENS.values(), ids=FIRST_TOKENS)
def test_log_probabilities_are_read_in_every_dialect(logprobs: Any, start: Start) -> None:
    """P(yes) is of the tokens that can be read."""
    reward = judge(start(lambda _: changed(completion("yes"), choice={"logprobs": logprobs})))
    assert reward.recipe_version.startswith("pointwise-logprobs:")
    assert score(reward, 9).scores == [pytest.approx(0.75)]


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the GPU melted", "code": 500}},
        {"error": "the GPU melted"},
        {"object": "error", "message": "the GPU melted", "code": 400},
        {"detail": [{"loc": ["body", "messages"], "msg": "the GPU melted", "type": "x"}]},
        {"choices": None, "error": {"message": "the GPU melted"}},
        {"choices": [], "error": {"message": "the GPU\nmelted"}},
    ],
)
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.usefixtures("quick")
def test_an_error_is_told_in_the_servers_words(status: int, body: dict[str, Any], start: Start) -> None:
    """Also of an error that comes with status 200: null, with the reason."""
    server = start(writes_numbers)
    reward = judge(server, judge_retries=0)
    server.judging = lambda _: Answer(body, status)
    (error,) = score(reward, 9).errors.values()
    assert "the GPU melted" in error.message
    assert "{" not in error.message


@pytest.mark.usefixtures("quick")
def test_a_busy_server_that_says_so_in_a_200_is_asked_again(start: Start) -> None:
    """Its code is the status that it would have been."""
    server = start(writes_numbers)
    reward = judge(server)
    busy = iter([Answer({"error": {"message": "slow down", "code": 429}})] * 2)
    server.judging = lambda question: next(busy, None) or writes_numbers(question)
    assert score(reward, 102).scores == [0.4]


def test_a_quota_that_is_used_up_is_not_waited_for(start: Start) -> None:
    """OpenAI's 429 that no waiting helps: told at once, in its words."""
    server = start(writes_numbers)
    reward = judge(server)
    spent = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    server.judging = lambda _: Answer(spent, 429)
    scores = score(reward, 9)
    assert codes(scores) == {0: "http_status"}
    assert "429: You exceeded your quota" in scores.errors[0].message
