"""Pairwise: two images at a time, each pair in both orders, and strengths out of who beat whom.

A judge that prefers whatever it sees first prefers each once, which says nothing of either. For the same reason a
pair of which one order failed is dropped. 2·K·(K−1)/2 requests up to K = 8, about 2·K·log2(K) above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from dipole.protocol.schemas import ItemError
from dipole_rewards.judging import bradley_terry, rubric
from dipole_rewards.judging.answer_forms import VERDICT
from dipole_rewards.judging.chat import CallFailed, Tab
from dipole_rewards.judging.mode import Mode, both, reason
from dipole_rewards.judging.tournament import Pair, Tournament
from dipole_rewards.reward import Scores

TASK = (
    "You are shown two images, A and B, made for the same prompt. Which is better by the rubric above? Their order "
    'means nothing. Answer with a JSON object and nothing else: {"better": "A"}, {"better": "B"}, or {"better": "tie"} '
    "when neither is."
)
APART = ItemError(code="no_comparison", message="no chain of comparisons joins this candidate to the others")


class Pairwise(Mode):
    name = "pairwise"
    calibrated = False
    lone = 0.0

    async def settle(self, uris: Sequence[str], tab: Tab) -> None:
        await self.settle_form(TASK, VERDICT, "two squares", {"Image A": uris[0], "Image B": uris[1]}, tab)

    def tasks(self) -> list[str]:
        return [TASK]

    async def scores(self, prompt: str, uris: Sequence[str], tab: Tab) -> Scores:
        count = len(uris)
        tournament = Tournament(count, Random(rubric.shuffle_seed(prompt, uris)))  # noqa: S311
        wins, ties = np.zeros((count, count)), np.zeros((count, count))
        errors: dict[int, ItemError] = {}
        while pairs := tournament.next_round(list(wins.sum(1) + ties.sum(1) / 2)):
            for pair, met in zip(
                pairs, await asyncio.gather(*(self._meet(prompt, uris, pair, tab) for pair in pairs)), strict=True
            ):
                if isinstance(met, CallFailed):
                    errors.update(dict.fromkeys(pair, reason(met)))
                    continue
                for better in met:
                    _count(better, pair, wins, ties)
        joined = _joined(wins + wins.T + ties)
        found = bradley_terry.strengths(wins, ties)
        return Scores(
            [float(score) if joined[index] else None for index, score in enumerate(found)],
            errors={index: errors.get(index, APART) for index in range(count) if not joined[index]},
        )

    async def _meet(
        self, prompt: str, uris: Sequence[str], pair: Pair, tab: Tab
    ) -> tuple[int | None, int | None] | CallFailed:
        """Who is better in either order, None for neither."""

        async def better(first: int, second: int) -> int | None:
            labelled = {"Image A": uris[first], "Image B": uris[second]}
            verdict = await self.ask(TASK, VERDICT, prompt, labelled, tab)
            return {"A": first, "B": second, "tie": None}[verdict]

        i, j = pair
        return await both(better(i, j), better(j, i))


def _count(better: int | None, pair: Pair, wins: NDArray[np.float64], ties: NDArray[np.float64]) -> None:
    i, j = pair
    if better is None:
        ties[i, j] += 1
        ties[j, i] += 1
    else:
        wins[better, j if better == i else i] += 1


def _joined(compared: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates (K,) belong to the largest set that comparisons hold together; none to a set of one.

    Strengths of two sets that never met do not compare.
    """
    _, component = connected_components(compared, directed=False)
    sizes = np.bincount(component)
    joined: NDArray[np.bool_] = (component == sizes.argmax()) & (sizes.max() > 1)
    return joined
