"""Pairwise: two images at a time, each pair in both orders, and strengths out of who beat whom.

A judge that prefers whatever it sees first prefers each once, which says nothing of either. For the same reason a
pair of which one order failed is dropped. 2·K·(K−1)/2 requests up to K = 8, about 2·K·log2(K) above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy.sparse.csgraph import connected_components

from dipole.protocol.schemas import ItemError
from dipole_rewards.judging import bradley_terry, rubric
from dipole_rewards.judging.answer_forms import VERDICT
from dipole_rewards.judging.chat import CallBudget, CallFailed
from dipole_rewards.judging.mode import JudgingMode, ask_both_orders, item_error_of
from dipole_rewards.judging.tournament import Pair, Tournament
from dipole_rewards.reward import Scores

PAIRWISE_TASK = (
    "You are shown two images, A and B, made for the same prompt. Which is better by the rubric above? Their order "
    'means nothing. Answer with a JSON object and nothing else: {"better": "A"}, {"better": "B"}, or {"better": "tie"} '
    "when neither is."
)
NOT_CONNECTED = ItemError(code="no_comparison", message="no chain of comparisons joins this candidate to the others")


class PairwiseMode(JudgingMode):
    name = "pairwise"
    calibrated = False
    lone_score = 0.0

    async def probe(self, uris: Sequence[str], budget: CallBudget) -> None:
        await self.probe_form(PAIRWISE_TASK, VERDICT, "two squares", {"Image A": uris[0], "Image B": uris[1]}, budget)

    def task_texts(self) -> list[str]:
        return [PAIRWISE_TASK]

    async def score_group(
        self, prompt: str, uris: Sequence[str], metadata: Mapping[str, JsonValue] | None, budget: CallBudget
    ) -> Scores:
        count = len(uris)
        tournament = Tournament(count, Random(rubric.shuffle_seed(prompt, uris)))  # noqa: S311
        wins, ties = np.zeros((count, count)), np.zeros((count, count))
        errors: dict[int, ItemError] = {}
        while pairs := tournament.next_round(list(wins.sum(1) + ties.sum(1) / 2)):
            for pair, met in zip(
                pairs,
                await asyncio.gather(*(self._compare_pair(prompt, uris, pair, budget) for pair in pairs)),
                strict=True,
            ):
                if isinstance(met, CallFailed):
                    errors.update(dict.fromkeys(pair, item_error_of(met)))
                    continue
                for better in met:
                    _record_result(better, pair, wins, ties)
        joined = _largest_connected(wins + wins.T + ties)
        found = bradley_terry.fit_strengths(wins, ties)
        return Scores(
            [float(score) if joined[index] else None for index, score in enumerate(found)],
            errors={index: errors.get(index, NOT_CONNECTED) for index in range(count) if not joined[index]},
        )

    async def _compare_pair(
        self, prompt: str, uris: Sequence[str], pair: Pair, budget: CallBudget
    ) -> tuple[int | None, int | None] | CallFailed:
        """Who is better in either order, None for neither."""

        async def ask_better(first: int, second: int) -> int | None:
            labelled = {"Image A": uris[first], "Image B": uris[second]}
            verdict = await self.ask_form(PAIRWISE_TASK, VERDICT, prompt, labelled, budget)
            return {"A": first, "B": second, "tie": None}[verdict]

        i, j = pair
        return await ask_both_orders(ask_better(i, j), ask_better(j, i))


def _record_result(better: int | None, pair: Pair, wins: NDArray[np.float64], ties: NDArray[np.float64]) -> None:
    i, j = pair
    if better is None:
        ties[i, j] += 1
        ties[j, i] += 1
    else:
        wins[better, j if better == i else i] += 1


def _largest_connected(compared: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates (K,) are in the largest connected component of the comparisons; none where it is of one.

    Strengths of two sets that never met do not compare.
    """
    _, component = connected_components(compared, directed=False)
    sizes = np.bincount(component)
    joined: NDArray[np.bool_] = (component == sizes.argmax()) & (sizes.max() > 1)
    return joined
