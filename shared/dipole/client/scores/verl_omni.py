"""`compute_score` for verl-omni's VisualRewardManager (reward.custom_reward_function.path names a file that has it).

It is called with keywords for one image at a time, `solution_image` uint8 (C, H, W) or (N, C, H, W), `ground_truth` the
prompt, and takes a dict with `score`; other numbers of it are logged. As verl-omni's source has it at a1139ba
(verl_omni/reward_loop/reward_manager/visual.py); its trainer needs GPUs and was not run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dipole.client.connection import EndpointError
from dipole.client.scores.client import AsyncClient

ComputeScore = Callable[..., Awaitable[dict[str, float]]]


def verl_compute_score(client: AsyncClient, *, missing: float | None = None) -> ComputeScore:
    """The function. An image without a score raises EndpointError with the reason, unless `missing` stands for it.

    Each image is asked about alone, so the reward must give scores that compare (`calibrated`): of an order of one
    nothing is learnt, which raises EndpointError too.
    """

    async def compute_score(
        data_source: str, solution_image: Any, ground_truth: str, extra_info: Any = None, **_: Any
    ) -> dict[str, float]:
        if not (await client.info()).calibrated:
            raise EndpointError(
                "the reward only orders images, and verl-omni asks about one at a time: use one that is calibrated",
                code="not_calibrated",
                counts_as_failure=False,
            )
        # of a video, the first frame
        image = solution_image[0] if solution_image.ndim == 4 else solution_image
        metadata = (extra_info or {}).get("metadata")
        (item,) = (await client.rank(ground_truth, [image], metadata)).results
        if item.score is None and missing is None:
            why = item.error.message if item.error else "no reason given"
            raise EndpointError(f"the image has no score: {why}", code="no_score", counts_as_failure=False)
        score = missing if item.score is None else item.score
        # last, so that no part of that name takes its place
        return {**(item.sub_scores or {}), "score": score}  # type: ignore[dict-item]

    return compute_score
