"""A vision-language model as the judge, at any OpenAI-compatible chat endpoint: vLLM on another machine, OpenAI itself.

Nothing is computed here: images travel as data: URIs, and the settings (DIPOLE_JUDGE_…) say who is asked, by which
rubric, and in which mode. What the modes do is told in `dipole_rewards.judging`, how to use them in docs/judge.md.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import JsonValue

from dipole.errors import ConfigurationError
from dipole.settings import load_settings
from dipole_rewards.judging import rubric
from dipole_rewards.judging.chat import CallBudget, CallFailed, ChatClient
from dipole_rewards.judging.listwise import ListwiseMode
from dipole_rewards.judging.mode import JudgingMode
from dipole_rewards.judging.pairwise import PairwiseMode
from dipole_rewards.judging.pointwise import PointwiseMode
from dipole_rewards.judging.questions import QuestionsMode
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import Golden, Pixels, Reward, Scores

JUDGING_MODES: dict[str, type[JudgingMode]] = {
    mode.name: mode for mode in (PointwiseMode, PairwiseMode, ListwiseMode, QuestionsMode)
}
UNSTATED_REVISION = "unstated"
ResultT = TypeVar("ResultT")


def make_square(colour: tuple[int, int, int]) -> Pixels:
    """64×64: a square on grey, which every judge's image processor takes."""
    image = np.full((64, 64, 3), 200, np.uint8)
    image[16:48, 16:48] = colour
    return image


class Judge(Reward):
    """Scores of pointwise and questions are comparable between groups; pairwise and listwise only order a group."""

    name = "judge"
    deterministic = False  # its model is sampled, and its server may change it without telling
    threads = 4  # the last requests of one group leave the endpoint idle, unless other groups ask too

    def __init__(self, settings: JudgeSettings) -> None:
        """Find the judge and judge two tiny images. Raises ConfigurationError that says what is wrong."""
        self._settings = settings
        self._mode = JUDGING_MODES[settings.judge_mode](
            ChatClient(settings), rubric.load_rubric(settings.judge_rubric), settings
        )
        self._loop = _EventLoopThread()
        images = make_square((220, 30, 30)), make_square((0, 0, 90))
        try:
            uris = [rubric.data_uri(image, max_side=settings.judge_max_side) for image in images]
            self._loop.run(_probe_mode(self._mode, uris, settings))
        except BaseException:
            self.close()
            raise
        self.model = settings.judge_model
        self.model_revision = settings.judge_model_revision or (self._mode.fingerprint or UNSTATED_REVISION)[:200]
        self.recipe_version = self._mode.recipe_version()
        self.calibrated = self._mode.calibrated

    @classmethod
    def load(cls, device: str) -> Self:
        return cls(load_settings(JudgeSettings))

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        if len(images) == 1 and self._mode.lone_score is not None:
            return Scores([self._mode.lone_score])
        uris = [rubric.data_uri(image, max_side=self._settings.judge_max_side) for image in images]
        return self._loop.run(self._score_images(prompt, uris, metadata))

    def golden(self) -> Golden:
        """Nobody knows what a judge gives an image, so any score in range will do: it shows that an answer is read.

        Modes that compare have nothing to do with one image; that they can judge, `load` has seen.
        """
        image = make_square((220, 30, 30))
        if self._mode.lone_score is not None:
            return Golden(prompt="a red square", image=image, score=self._mode.lone_score)
        asked: dict[str, JsonValue] = {"questions": ["Does the image show a red square?"]}
        return Golden(prompt="a red square", image=image, score=0.5, tolerance=0.5, metadata=asked)

    def close(self) -> None:
        """Close the HTTP client and stop the event loop; nothing may be scored any more."""
        self._loop.run(self._mode.chat.close())
        self._loop.close()

    async def _score_images(self, prompt: str, uris: list[str], metadata: Mapping[str, JsonValue] | None) -> Scores:
        tab = self._mode.chat.open_budget()
        scores = await self._mode.score_group(prompt, uris, metadata, tab)
        return replace(scores, usage=_describe_usage(tab, self._settings))


async def _probe_mode(mode: JudgingMode, uris: Sequence[str], settings: JudgeSettings) -> None:
    tab = mode.chat.open_budget()
    try:
        await mode.probe(uris, tab)
    except CallFailed as failure:
        hint = ""
        if failure.status in (401, 403):
            hint = "; DIPOLE_JUDGE_KEY must be a key that may use this model"
        elif failure.status in (400, 422):
            hint = '; DIPOLE_JUDGE_EXTRA leaves out a field that this model refuses, as {"temperature": null}'
        elif failure.status == 404:
            offered = await mode.chat.list_models(mode.chat.open_budget(seconds=settings.judge_call_timeout_s))
            names = ", ".join(offered[:10]) or "nothing that it would list"
            hint = f"; DIPOLE_JUDGE_URL must end where /chat/completions follows, DIPOLE_JUDGE_MODEL is one of: {names}"
        elif failure.code in ("transport", "invalid_response") and failure.status is None:
            hint = "; DIPOLE_JUDGE_URL must be the base URL of an OpenAI-compatible endpoint, up to /v1"
        elif failure.code == "no_parse":
            hint = "; this model does not keep to the form of answers: take another, or raise DIPOLE_JUDGE_MAX_TOKENS"
        raise ConfigurationError(
            f"{settings.judge_model} at {settings.judge_url} does not judge: {failure}{hint}"
        ) from None


def _describe_usage(budget: CallBudget, settings: JudgeSettings) -> dict[str, float]:
    """Requests sent, and tokens and their price where the endpoint tells of them."""
    usage: dict[str, float] = {"calls": budget.calls}
    if budget.has_usage:
        usage |= {"prompt_tokens": budget.prompt_tokens, "completion_tokens": budget.completion_tokens}
        for_prompt = settings.judge_usd_per_million_prompt_tokens
        for_completion = settings.judge_usd_per_million_completion_tokens
        if for_prompt is not None and for_completion is not None:
            dollars = (budget.prompt_tokens * for_prompt + budget.completion_tokens * for_completion) / 1e6
            usage["cost_usd"] = round(dollars, 9)
    return usage


class _EventLoopThread:
    """An event loop in a thread of its own, which all groups' requests share, and one rate limiter with it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
