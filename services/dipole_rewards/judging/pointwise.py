"""Pointwise: each image is judged alone, in K requests. Scores mean the same in every group.

Where the endpoint gives log probabilities, the score is P(yes) = Σ p(yes-tokens) / Σ p(yes- and no-tokens) of the
answer's first token: one token of output, and finer than any number that a model writes. Elsewhere it is the number
it writes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import JsonValue

from dipole_rewards.judging.answer_forms import SCORE
from dipole_rewards.judging.chat import CallBudget, CallFailed, TokenLogprob
from dipole_rewards.judging.mode import JudgingMode, item_error_of
from dipole_rewards.reward import Scores

YES_OR_NO = "You are shown one image. Is it good by the rubric above? Answer with one word, yes or no."
ZERO_TO_100 = (
    'You are shown one image. Answer with a JSON object and nothing else: {"score": N}, N being a whole number from 0, '
    "nothing of what the rubric above calls good, to 100, all of it."
)
TOP_LOGPROBS = 20  # as many as OpenAI and vLLM give
# the least probability of yes and no together at the first token; below it the answer is unusable
MIN_ANSWER_MASS = 0.1
STRIPPED_CHARS = " \t\n\"'`*.,!▁Ġ"  # what may stand around the word in one token


class PointwiseMode(JudgingMode):
    name = "pointwise"
    calibrated = True
    yes_or_no: ClassVar[str] = YES_OR_NO
    zero_to_100: ClassVar[str] = ZERO_TO_100
    probe_text: ClassVar[str] = "two squares"
    answer_kind: Literal["logprobs", "json"] = "logprobs"

    async def probe(self, uris: Sequence[str], budget: CallBudget) -> None:
        known = self.settings.judge_logprobs
        refused: CallFailed | None = None
        try:
            if known is not False:
                await self.score_image(self.probe_text, uris[0], budget)
                return
        except CallFailed as failure:
            if known or not (failure.code == "no_parse" or failure.may_be_unsupported):
                raise
            refused = failure if failure.may_be_unsupported else None
        self.answer_kind = "json"
        try:
            await self.probe_form(self.zero_to_100, SCORE, self.probe_text, {"Image": uris[0]}, budget)
        except CallFailed as failure:
            raise (failure.after(refused) if refused else failure) from None

    def recipe_title(self) -> str:
        return f"{self.name}-{self.answer_kind}"

    def task_texts(self) -> list[str]:
        return [self.yes_or_no if self.answer_kind == "logprobs" else self.zero_to_100]

    async def score_group(
        self, prompt: str, uris: Sequence[str], metadata: Mapping[str, JsonValue] | None, budget: CallBudget
    ) -> Scores:
        given = await asyncio.gather(*(self.try_image(prompt, uri, budget) for uri in uris))
        errors = {index: item_error_of(each) for index, each in enumerate(given) if isinstance(each, CallFailed)}
        return Scores([None if isinstance(each, CallFailed) else each for each in given], errors=errors)

    async def try_image(self, text: str, uri: str, budget: CallBudget) -> float | CallFailed:
        """As `score_image`; a failure is returned, so that the rest stands."""
        try:
            return await self.score_image(text, uri, budget)
        except CallFailed as failure:
            return failure

    async def score_image(self, text: str, uri: str, budget: CallBudget) -> float:
        """P(yes), or the number that the judge writes, in 0…1. Raises CallFailed."""
        if self.answer_kind == "json":
            return await self.ask_form(self.zero_to_100, SCORE, text, {"Image": uri}, budget)
        messages = self.build_messages(self.yes_or_no, text, {"Image": uri})
        reply = await self.chat.ask_model(
            messages, budget, max_completion_tokens=1, logprobs=True, top_logprobs=TOP_LOGPROBS
        )
        self.fingerprint = reply.fingerprint or self.fingerprint
        return probability_of_yes(reply.first_token)


def probability_of_yes(first_token: Sequence[TokenLogprob]) -> float:
    """P(yes) out of the likeliest first tokens, or CallFailed with `no_parse`."""
    mass = {"yes": 0.0, "no": 0.0}
    for each in first_token:
        word = each.token.strip(STRIPPED_CHARS).casefold()
        if word in mass:
            mass[word] += math.exp(min(each.logprob, 0.0))
    total = mass["yes"] + mass["no"]
    # not a number is not enough either
    if not total >= MIN_ANSWER_MASS:
        seen = ", ".join(repr(each.token) for each in first_token[:5]) or "no log probabilities"
        raise CallFailed("no_parse", f"the judge's first token is hardly yes or no: {seen}")
    return mass["yes"] / total
