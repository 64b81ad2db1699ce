"""Listwise: all images at once, in several orders, and the mean of the ranks.

Each shuffled order is also shown reversed, so that every image stands at the same mean position, and a judge that
goes by position says nothing. For the same reason an order counts only when its reverse was answered too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import numpy as np

from dipole_rewards.judging import answer_forms, rubric
from dipole_rewards.judging.chat import CallFailed, Tab
from dipole_rewards.judging.mode import Mode, both, reason
from dipole_rewards.reward import Scores

TASK = (
    "You are shown several numbered images made for the same prompt. Rank them by the rubric above, from the best to "
    "the worst. Their order and numbers mean nothing. Answer with a JSON object and nothing else: "
    '{"ranking": [2, 3, 1]}, naming every number exactly once, the best first.'
)


class Listwise(Mode):
    name = "listwise"
    calibrated = False
    lone = 0.5

    async def settle(self, uris: Sequence[str], tab: Tab) -> None:
        labelled = {f"Image {number}": uri for number, uri in enumerate(uris, 1)}
        await self.settle_form(TASK, answer_forms.order(len(uris)), "two squares", labelled, tab)

    def tasks(self) -> list[str]:
        return [TASK, f"{self.settings.judge_orders} orders"]

    async def scores(self, prompt: str, uris: Sequence[str], tab: Tab) -> Scores:
        """Scores in 0…1: 1 for an image that was best in every order."""
        count, random = len(uris), Random(rubric.shuffle_seed(prompt, uris))  # noqa: S311
        orders = [random.sample(range(count), count) for _ in range(self.settings.judge_orders)]
        given = await asyncio.gather(*(self._both_ways(prompt, uris, order, tab) for order in orders))
        places = [place for each in given if not isinstance(each, CallFailed) for place in each]
        if not places:
            failure = next(each for each in given if isinstance(each, CallFailed))
            return Scores([None] * count, errors=dict.fromkeys(range(count), reason(failure)))
        mean = np.mean(places, axis=0)  # (K,) over orders
        return Scores([float(round(1 - place / (count - 1), 6)) for place in mean])

    async def _both_ways(
        self, prompt: str, uris: Sequence[str], order: list[int], tab: Tab
    ) -> tuple[list[int], list[int]] | CallFailed:
        """Each image's place (0 the best) in two rankings."""
        return await both(self._places(prompt, uris, order, tab), self._places(prompt, uris, order[::-1], tab))

    async def _places(self, prompt: str, uris: Sequence[str], shown: list[int], tab: Tab) -> list[int]:
        labelled = {f"Image {number}": uris[index] for number, index in enumerate(shown, 1)}
        ranking = await self.ask(TASK, answer_forms.order(len(shown)), prompt, labelled, tab)
        places = [0] * len(shown)
        for place, number in enumerate(ranking):
            places[shown[number - 1]] = place
        return places
