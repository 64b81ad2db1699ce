"""What the three modes have in common: one judge, one rubric, and what this endpoint was found able to do."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import ClassVar, TypeVar

from dipole.protocol.schemas import ItemError
from dipole_rewards.judging import rubric
from dipole_rewards.judging.answer_forms import Form
from dipole_rewards.judging.chat import CallFailed, Chat, Message, Tab
from dipole_rewards.judging.rubric import Rubric
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import Scores

Read = TypeVar("Read")
NOT_OFFERED = (400, 422, 501)
RECIPE = 1  # goes up when the code changes what a judgement means


class Mode(ABC):
    """A way to judge a group. Every coroutine runs in the loop of its Chat."""

    name: ClassVar[str]
    calibrated: ClassVar[bool]
    lone: ClassVar[float | None] = None
    """The score of an image that is alone in its group, where the mode can only compare."""

    def __init__(self, chat: Chat, rubric: Rubric, settings: JudgeSettings) -> None:
        self.chat, self.rubric, self.settings = chat, rubric, settings
        self.structured = True
        """Whether requests carry `response_format`; `settle` finds out."""
        self.fingerprint: str | None = None

    @abstractmethod
    async def settle(self, uris: Sequence[str], tab: Tab) -> None:
        """Judge two tiny images for real, and keep to the forms that the endpoint takes. Raises CallFailed."""

    @abstractmethod
    async def scores(self, prompt: str, uris: Sequence[str], tab: Tab) -> Scores:
        """Judge K images (data: URIs) of one prompt. What fails is null with its reason; the rest stands."""

    @abstractmethod
    def tasks(self) -> list[str]:
        """The tasks in use, and whatever else shapes this mode's judgements: its part of the recipe."""

    def title(self) -> str:
        """How the recipe names this mode."""
        return self.name

    def recipe(self) -> str:
        """Version of everything around the model, as in pairwise:aesthetics:0f3a…"""
        settings = self.settings
        asked = [settings.judge_max_side, settings.judge_max_tokens, settings.judge_extra, self.structured]
        digest = rubric.fingerprint([self.rubric.system(task) for task in self.tasks()], asked, RECIPE)
        return f"{self.title()}:{self.rubric.name[:64]}:{digest}"

    def messages(self, task: str, prompt: str, labelled: Mapping[str, str]) -> list[Message]:
        return [self.rubric.system(task), rubric.user(prompt, labelled)]

    async def ask(self, task: str, form: Form[Read], prompt: str, labelled: Mapping[str, str], tab: Tab) -> Read:
        """One JSON answer in this form, or CallFailed."""
        reply = await self.chat.ask(
            self.messages(task, prompt, labelled),
            tab,
            max_completion_tokens=self.settings.judge_max_tokens,
            response_format=form.response_format() if self.structured else None,
        )
        self.fingerprint = reply.fingerprint or self.fingerprint
        return form.read(reply.text)

    async def settle_form(
        self, task: str, form: Form[Read], prompt: str, labelled: Mapping[str, str], tab: Tab
    ) -> Read:
        """As `ask`; an endpoint that refuses `response_format` is not sent any from now on."""
        try:
            return await self.ask(task, form, prompt, labelled, tab)
        except CallFailed as failure:
            if failure.status not in NOT_OFFERED:
                raise
        self.structured = False
        return await self.ask(task, form, prompt, labelled, tab)


async def both(there: Awaitable[Read], back: Awaitable[Read]) -> tuple[Read, Read] | CallFailed:
    """Both orders of one question, or why one of them failed: half of it would be a judgement of positions."""
    first, second = await asyncio.gather(there, back, return_exceptions=True)
    for each in (first, second):
        if isinstance(each, CallFailed):
            return each
        if isinstance(each, BaseException):
            raise each
    assert not isinstance(first, BaseException)
    assert not isinstance(second, BaseException)
    return first, second


def reason(failure: CallFailed) -> ItemError:
    return ItemError(code=failure.code, message=str(failure))
