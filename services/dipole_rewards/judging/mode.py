"""What the modes have in common: one judge, one rubric, and the capabilities that `probe` found."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import ClassVar, TypeVar

from pydantic import JsonValue

from dipole.protocol.schemas import ItemError
from dipole_rewards.judging import rubric
from dipole_rewards.judging.answer_forms import AnswerForm
from dipole_rewards.judging.chat import CallBudget, CallFailed, ChatClient, ChatMessage
from dipole_rewards.judging.rubric import Rubric
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import Scores

AnswerT = TypeVar("AnswerT")
RECIPE_NUMBER = 1  # goes up when the code changes what a judgement means


class JudgingMode(ABC):
    """A way to judge a group. Every coroutine runs in the loop of its ChatClient."""

    name: ClassVar[str]
    calibrated: ClassVar[bool]
    lone_score: ClassVar[float | None] = None
    """The score of an image that is alone in its group, where the mode can only compare."""
    material: ClassVar[str] = "prompt"
    """What the text is called that travels with the images, and that the system message tells of."""

    def __init__(self, chat: ChatClient, rubric: Rubric, settings: JudgeSettings) -> None:
        self.chat, self.rubric, self.settings = chat, rubric, settings
        self.sends_response_format = settings.judge_json_schema is not False
        """Whether requests carry `response_format`; `probe` finds out where the settings do not say."""
        self.fingerprint: str | None = None

    @abstractmethod
    async def probe(self, uris: Sequence[str], budget: CallBudget) -> None:
        """Judge two tiny images for real, and keep to the forms that the endpoint takes. Raises CallFailed."""

    @abstractmethod
    async def score_group(
        self, prompt: str, uris: Sequence[str], metadata: Mapping[str, JsonValue] | None, budget: CallBudget
    ) -> Scores:
        """Judge K images (data: URIs) of one prompt. What fails is null with its reason; the rest stands."""

    @abstractmethod
    def task_texts(self) -> list[str]:
        """The tasks in use, and whatever else shapes this mode's judgements: its part of the recipe."""

    def recipe_title(self) -> str:
        """How the recipe names this mode."""
        return self.name

    def recipe_version(self) -> str:
        """Version of everything around the model, as in pairwise:aesthetics:0f3a…"""
        settings = self.settings
        asked = [settings.judge_max_side, settings.judge_max_tokens, settings.judge_extra, self.sends_response_format]
        digest = rubric.fingerprint_parts(
            [self.rubric.system_message(task) for task in self.task_texts()], asked, RECIPE_NUMBER
        )
        return f"{self.recipe_title()}:{self.rubric.name[:64]}:{digest}"

    def build_messages(self, task: str, text: str, labelled: Mapping[str, str]) -> list[ChatMessage]:
        return [self.rubric.system_message(task), rubric.user_message(text, labelled, called=self.material)]

    async def ask_form(
        self, task: str, form: AnswerForm[AnswerT], text: str, labelled: Mapping[str, str], budget: CallBudget
    ) -> AnswerT:
        """One JSON answer in this form, or CallFailed."""
        reply = await self.chat.ask_model(
            self.build_messages(task, text, labelled),
            budget,
            max_completion_tokens=self.settings.judge_max_tokens,
            response_format=form.response_format() if self.sends_response_format else None,
        )
        self.fingerprint = reply.fingerprint or self.fingerprint
        return form.parse(reply.text)

    async def probe_form(
        self, task: str, form: AnswerForm[AnswerT], text: str, labelled: Mapping[str, str], budget: CallBudget
    ) -> AnswerT:
        """As `ask_form`; an endpoint that refuses `response_format` is not sent any from now on."""
        try:
            return await self.ask_form(task, form, text, labelled, budget)
        except CallFailed as failure:
            if self.settings.judge_json_schema is not None or not failure.may_be_unsupported:
                raise
            with_schema = failure
        self.sends_response_format = False
        try:
            return await self.ask_form(task, form, text, labelled, budget)
        except CallFailed as failure:
            raise failure.after(with_schema) from None


async def ask_both_orders(there: Awaitable[AnswerT], back: Awaitable[AnswerT]) -> tuple[AnswerT, AnswerT] | CallFailed:
    """Both orders of one question, or why one of them failed: one order alone would measure position bias."""
    first, second = await asyncio.gather(there, back, return_exceptions=True)
    for each in (first, second):
        if isinstance(each, CallFailed):
            return each
        if isinstance(each, BaseException):
            raise each
    assert not isinstance(first, BaseException)
    assert not isinstance(second, BaseException)
    return first, second


def item_error_of(failure: CallFailed) -> ItemError:
    return ItemError(code=failure.code, message=str(failure))
