"""Listwise: all images at once, in several orders, and the mean of the ranks.

Each shuffled order is also shown reversed, so that every image stands at the same mean position, and a judge that
goes by position says nothing. For the same reason an order counts only when its reverse was answered too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from pydantic import JsonValue

from dipole_rewards.judging import answer_forms, rubric
from dipole_rewards.judging.chat import CallBudget, CallFailed
from dipole_rewards.judging.mode import JudgingMode, ask_both_orders, item_error_of
from dipole_rewards.reward import Scores

LISTWISE_TASK = (
    "You are shown several numbered images made for the same prompt. Rank them by the rubric above, from the best to "
    "the worst. Their order and numbers mean nothing. Answer with a JSON object and nothing else: "
    '{"ranking": [2, 3, 1]}, naming every number exactly once, the best first.'
)


class ListwiseMode(JudgingMode):
    name = "listwise"
    calibrated = False
    lone_score = 0.5

    async def probe(self, uris: Sequence[str], budget: CallBudget) -> None:
        labelled = {f"Image {number}": uri for number, uri in enumerate(uris, 1)}
        await self.probe_form(LISTWISE_TASK, answer_forms.order_form(len(uris)), "two squares", labelled, budget)

    def task_texts(self) -> list[str]:
        return [LISTWISE_TASK, f"{self.settings.judge_orders} orders"]

    async def score_group(
        self, prompt: str, uris: Sequence[str], metadata: Mapping[str, JsonValue] | None, budget: CallBudget
    ) -> Scores:
        """Scores in 0…1: 1 for an image that was best in every order."""
        count, random = len(uris), Random(rubric.shuffle_seed(prompt, uris))  # noqa: S311
        orders = [random.sample(range(count), count) for _ in range(self.settings.judge_orders)]
        given = await asyncio.gather(*(self._rank_both_ways(prompt, uris, order, budget) for order in orders))
        places = [place for each in given if not isinstance(each, CallFailed) for place in each]
        if not places:
            failure = next(each for each in given if isinstance(each, CallFailed))
            return Scores([None] * count, errors=dict.fromkeys(range(count), item_error_of(failure)))
        mean = np.mean(places, axis=0)  # (K,) over orders
        return Scores([float(round(1 - place / (count - 1), 6)) for place in mean])

    async def _rank_both_ways(
        self, prompt: str, uris: Sequence[str], order: list[int], budget: CallBudget
    ) -> tuple[list[int], list[int]] | CallFailed:
        """Each image's place (0 the best) in two rankings."""
        return await ask_both_orders(
            self._ask_places(prompt, uris, order, budget), self._ask_places(prompt, uris, order[::-1], budget)
        )

    async def _ask_places(self, prompt: str, uris: Sequence[str], shown: list[int], budget: CallBudget) -> list[int]:
        labelled = {f"Image {number}": uris[index] for number, index in enumerate(shown, 1)}
        ranking = await self.ask_form(LISTWISE_TASK, answer_forms.order_form(len(shown)), prompt, labelled, budget)
        places = [0] * len(shown)
        for place, number in enumerate(ranking):
            places[shown[number - 1]] = place
        return places
