"""Reward `judge` in the mode `questions`: each question of the metadata a request, and the geometric mean of P(yes)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dipole_rewards.judging.questions import MIN_PROBABILITY
from dipole_rewards.reward import Scores, check_golden
from dipole_rewards.rewards.judge import Judge

from .scripted_judge import Answer, Question, Start, codes, completion, group, judge, refusal

DOG, BROWN = "Is there a dog?", 'Is it brown, "exactly"?'


def question_of(question: Question) -> str:
    (text,) = json.loads(question.data).values()
    return str(text)


def p_of(text: str, brightness: int) -> float:
    """What the scripted judge thinks of an image: dogs are bright, and brown ones are dark."""
    share = (brightness + 0.5) / 256
    return share if text == DOG else 1 - share / 2


def knows_dogs(question: Question) -> Answer:
    p = p_of(question_of(question), question.brightnesses[0])
    return completion("Yes", logprobs={"Yes": p * 0.9, "No": (1 - p) * 0.9})


def asked(reward: Judge, *brightnesses: int, questions: Any = (DOG, BROWN)) -> Scores:
    metadata = {"questions": list(questions) if isinstance(questions, tuple) else questions, "tag": "dogs"}
    return reward.score(prompt="a brown dog", images=group(*brightnesses), metadata=metadata)


def test_the_score_is_the_geometric_mean_of_the_answers(start: Start) -> None:
    """K·Q requests, P(yes) of each as a sub-score by the question's number; comparable between groups."""
    server = start(knows_dogs)
    reward = judge(server, judge_mode="questions")
    before = len(server.questions)
    scores = asked(reward, 10, 120, 250)
    expected = np.array([[p_of(text, each) for text in (DOG, BROWN)] for each in (10, 120, 250)])
    assert scores.scores == pytest.approx(np.exp(np.log(expected).mean(1)))
    assert scores.sub_scores is not None
    for parts, row in zip(scores.sub_scores, expected, strict=True):
        assert parts == pytest.approx({"question_1": row[0], "question_2": row[1]})
    assert len(server.asked(since=before)) == scores.usage["calls"] == 6
    assert reward.calibrated
    assert reward.recipe_version.startswith("questions-logprobs:metadata:")
    check_golden(reward)


def test_the_judge_sees_the_question_and_not_the_prompt(start: Start) -> None:
    """As escaped data, the same system message for all of them, and no rubric; an image alone is judged too."""
    server = start(knows_dogs)
    reward = judge(server, judge_mode="questions", judge_rubric="aesthetics")
    before = len(server.questions)
    assert None not in asked(reward, 90).scores
    first, second = server.asked(since=before)
    assert {json.loads(each.data)["question"] for each in (first, second)} == {DOG, BROWN}
    assert first.system == second.system
    for each in (first, second):
        assert "brown dog" not in json.dumps(each.body)
        assert "beaut" not in each.system
        assert "rubric" not in each.system
        assert [label for label, _ in each.shown] == ["Image:"]


def test_numbers_do_where_there_are_no_log_probabilities(start: Start) -> None:
    """A question that is answered by 0 leaves the others' say in the order."""

    def writes(question: Question) -> Answer:
        return completion(
            json.dumps({"score": 0 if question_of(question) == DOG else min(100, question.brightnesses[0])})
        )

    reward = judge(start(writes), judge_mode="questions")
    assert asked(reward, 25, 100).scores == pytest.approx([(MIN_PROBABILITY * p) ** 0.5 for p in (0.25, 1)])
    assert reward.recipe_version.startswith("questions-json:")


def test_an_image_that_lacks_an_answer_has_no_score(start: Start) -> None:
    """It would compare with no other; its reason is told, and the rest stands."""

    def refuses_dark(question: Question) -> Answer:
        dark_dog = question.brightnesses == [9] and question_of(question) == DOG
        return refusal(400, "context too long") if dark_dog else knows_dogs(question)

    scores = asked(judge(start(refuses_dark), judge_mode="questions"), 9, 200)
    assert scores.scores[0] is None
    assert scores.scores[1] is not None
    assert codes(scores) == {0: "http_status"}


@pytest.mark.parametrize(
    ("questions", "code"),
    [
        (None, "missing_metadata"),
        ([], "missing_metadata"),
        (DOG, "bad_metadata"),
        ([DOG, ""], "bad_metadata"),
        ([DOG, ["How many?", "four"]], "bad_metadata"),
        ([DOG] * 65, "bad_metadata"),
    ],
)
def test_questions_that_are_none_are_told_by_their_field(questions: Any, code: str, start: Start) -> None:
    """Nobody is asked."""
    server = start(knows_dogs)
    reward = judge(server, judge_mode="questions")
    before = len(server.questions)
    scores = asked(reward, 9, 200, questions=questions)
    assert scores.scores == [None, None]
    assert codes(scores) == {0: code, 1: code}
    assert "metadata.questions" in scores.errors[0].message
    assert server.asked(since=before) == []
