"""What reward `judge` checks and says at start, and the service that it makes."""

from __future__ import annotations

import base64
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole import conformance
from dipole.errors import ConfigurationError
from dipole.protocol import images
from dipole.settings import load_settings
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import check_golden
from dipole_rewards.rewards.judge import Judge

from ...processes import serving
from ..conftest import serve_command
from .scripted_judge import (
    KEY,
    Answer,
    Judging,
    Question,
    Start,
    completion,
    group,
    judge,
    prefers_bright,
    refusal,
    says_yes,
    score,
)


def with_key(question: Question) -> Answer:
    if question.headers.get("authorization") != f"Bearer {KEY}":
        return refusal(401, f"Incorrect API key provided: {question.headers.get('authorization')}")
    return says_yes(question)


def test_the_key_is_sent_and_never_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from its setting alone, and an error that repeats it is told without it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "somebody")
    server = start(with_key)
    with pytest.raises(ConfigurationError, match="DIPOLE_JUDGE_KEY must be a key that may use this model"):
        judge(server)
    assert "authorization" not in server.questions[0].headers
    reward = judge(server, judge_key=KEY)
    assert score(reward, 10).errors == {}
    assert not {"openai-organization", "openai-project"} & server.questions[-1].headers.keys()
    server.judging = lambda question: refusal(400, f"what is {question.headers['authorization']}?")
    assert "what is Bearer [key]?" in score(reward, 10).errors[0].message
    with pytest.raises(ConfigurationError) as caught:
        judge(server, judge_key=KEY)
    assert KEY not in str(caught.value)
    assert KEY not in repr(vars(reward))


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_from_a_file_is_taken_without_its_line_end(end: str, start: Start) -> None:
    """With it no request could be sent, and the client would tell the key in its error."""
    server = start(with_key)
    assert score(judge(server, judge_key=KEY + end), 10).errors == {}


@pytest.mark.parametrize("key", ["sk-sécret-of-mine", "sk-secret of-mine", "sk-secret\nof-mine", "\n"])
def test_a_key_that_no_header_carries_is_refused_and_not_told(key: str, start: Start) -> None:
    """The sentence names the setting; the key is in none of it, nor in what it was raised from."""
    with pytest.raises(ConfigurationError, match="DIPOLE_JUDGE_KEY") as caught:
        judge(start(says_yes), judge_key=key)
    assert "of-mine" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/v1", "http://127.0.0.1:abc/v1", "https://a b/v1", "https://a\0/v1"]
)
def test_a_url_that_nobody_can_be_asked_at_is_refused(url: str) -> None:
    """At start, by the name of its setting."""
    with pytest.raises(ConfigurationError, match="DIPOLE_JUDGE_URL: "):
        load_settings(JudgeSettings, judge_url=url, judge_model="vlm")


@pytest.mark.parametrize(
    ("judging", "said"),
    [
        (lambda _: refusal(404, "The model `vlm` does not exist."), "DIPOLE_JUDGE_MODEL is one of: vlm"),
        (lambda _: refusal(403), "DIPOLE_JUDGE_KEY"),
        (lambda _: refusal(400, "vlm is not a multimodal model"), "vlm is not a multimodal model"),
        (lambda _: refusal(400, "temperature must be 1"), "DIPOLE_JUDGE_EXTRA leaves out a field"),
        (lambda _: Answer(b"<html>Welcome!</html>"), "did not answer with a chat completion; DIPOLE_JUDGE_URL"),
        (lambda _: completion("I like it"), "the judge answered 'I like it'"),
        (lambda _: Answer({}, after_s=20), "no judgement before"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_judge_that_cannot_judge_fails_at_start(judging: Judging, said: str, start: Start) -> None:
    """With one sentence that says what is wrong and which setting to change."""
    with pytest.raises(ConfigurationError, match="does not judge") as caught:
        judge(start(judging), judge_deadline_s=2)
    assert said in str(caught.value)
    assert "vlm at http://127.0.0.1" in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_a_wrong_address_fails_at_start() -> None:
    """Nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigurationError, match=r"could not be asked: .*DIPOLE_JUDGE_URL must be the base URL"):
        Judge(load_settings(JudgeSettings, judge_url=f"http://127.0.0.1:{port}/v1", judge_model="vlm"))


def test_versions_say_who_judged_and_how(start: Start, tmp_path: Path) -> None:
    """The model's name; its revision as set, or as the endpoint calls it; and a recipe that changes with the rubric's
    text, the mode, and every setting that shapes a judgement, and with nothing else."""
    server = start(says_yes)
    reward = judge(server)
    assert (reward.model, reward.model_revision) == ("vlm", "fp_7")
    assert judge(server, judge_model_revision="2026-01").model_revision == "2026-01"
    assert reward.recipe_version.startswith("pointwise-logprobs:prompt_alignment:")
    same = judge(server, judge_concurrency=2, judge_retries=1, judge_key=KEY)
    assert same.recipe_version == reward.recipe_version
    mine = tmp_path / "mine.txt"
    mine.write_text("Dogs are good.")
    recipes = [judge(server, judge_rubric=str(mine)).recipe_version]
    mine.write_text("Dogs are better.")
    recipes += [judge(server, judge_rubric=str(mine)).recipe_version]
    recipes += [judge(server, **{name: value}).recipe_version for name, value in [
        ("judge_rubric", "aesthetics"), ("judge_max_side", 512), ("judge_extra", {"seed": 1}), ("judge_max_tokens", 9),
    ]]  # fmt: skip
    server.judging = prefers_bright
    recipes += [judge(server, judge_mode="listwise", judge_orders=orders).recipe_version for orders in (1, 2)]
    recipes += [judge(server, judge_mode="pairwise").recipe_version]
    assert len({reward.recipe_version, *recipes}) == 1 + len(recipes)
    assert max(map(len, recipes)) <= 255


def test_extra_fields_are_sent_and_null_leaves_one_out(start: Start) -> None:
    """A reasoning model of OpenAI's refuses temperature 0; a vLLM can be told not to think."""
    server = start(says_yes)
    judge(server, judge_extra={"temperature": None, "chat_template_kwargs": {"enable_thinking": False}})
    (question,) = server.questions
    assert "temperature" not in question.body
    assert question.body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("mode", ["pointwise", "pairwise", "listwise"])
def test_the_golden_check_passes_when_an_answer_is_read(mode: str, start: Start) -> None:
    """Any score in range: nobody knows what this judge gives an image."""
    check_golden(judge(start(says_yes if mode == "pointwise" else prefers_bright), judge_mode=mode))


@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
def test_it_is_served_and_passes_the_conformance_suite(mode: str, start: Start, tmp_path: Path) -> None:
    """`dipole rewards serve` with settings from the environment, a judge behind it: no check fails, and four groups
    are judged at a time."""
    judging = says_yes if mode == "pointwise" else prefers_bright
    server = start(judging)
    environment = {
        "DIPOLE_JUDGE_URL": server.url, "DIPOLE_JUDGE_MODEL": "vlm", "DIPOLE_JUDGE_MODE": mode,
        "DIPOLE_JUDGE_EXTRA": '{"seed": 1}', "DIPOLE_REWARD_MAX_BODY_BYTES": "3000000",
    }  # fmt: skip
    command = partial(serve_command, "dipole_rewards.rewards.judge:Judge")
    with serving(command, tmp_path / "log", env=environment) as (url, _):
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
        failed = [result for result in conformance.run_checks(url) if result.outcome == "failed"]
        server.judging = lambda question: Answer(judging(question).body, after_s=0.5)
        server.most_in_flight = 0
        with ThreadPoolExecutor(6) as callers:
            ranked = list(callers.map(lambda _: rank(url, 10, 20), range(6)))
    assert failed == []
    assert (info["name"], info["model"], info["calibrated"]) == ("judge", "vlm", mode == "pointwise")
    assert server.questions[-1].body["seed"] == 1
    assert server.most_in_flight == 4 * 2
    assert [[item["rank"] for item in each["results"]] for each in ranked] == [[2, 1]] * 6
    assert ranked[0]["usage"]["prompt_tokens"] == 200


def rank(url: str, *brightnesses: int) -> Any:
    """One request to the reward service, and its answer."""
    candidates = []
    for index, pixels in enumerate(group(*brightnesses)):
        data = base64.b64encode(images.encode_png(pixels)).decode()
        candidates.append({"id": f"c{index}", "image": {"media_type": "image/png", "data": data}})
    body = {"prompt": "a bright image", "candidates": candidates}
    return httpx.post(f"{url}/v1/rank", json=body, trust_env=False, timeout=30).raise_for_status().json()
