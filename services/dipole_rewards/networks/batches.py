"""Forwards over images: too thin ones are rejected, the rest goes in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import structlog
import torch

from dipole.protocol.schemas import MAX_CANDIDATES, ItemError
from dipole_rewards.reward import CandidateImages, Pixels, Scores

log = structlog.get_logger()
MAX_ASPECT = 200  # a thinner image would be resized to millions of pixels, or to none
TOO_THIN = ItemError(code="aspect_ratio", message=f"one side is more than {MAX_ASPECT} times the other")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ImageInGroup(NamedTuple):
    """One image, and the group whose prompt it was made for."""

    image: Pixels
    group: CandidateImages


def score_all(
    groups: Sequence[CandidateImages], forward: Callable[[Sequence[ImageInGroup]], Sequence[float]]
) -> list[Scores]:
    """`forward`'s scores of all groups' images at once, a Scores each; an image beyond MAX_ASPECT gets the reason."""
    places = [(n, k) for n, group in enumerate(groups) for k, image in enumerate(group.images) if not is_thin(image)]
    found = forward([ImageInGroup(groups[n].images[k], groups[n]) for n, k in places])
    scores = dict(zip(places, found, strict=True))
    return [
        Scores(
            [scores.get((n, k)) for k in range(len(group.images))],
            errors={k: TOO_THIN for k in range(len(group.images)) if (n, k) not in scores},
        )
        for n, group in enumerate(groups)
    ]


def is_thin(image: Pixels) -> bool:
    """Whether one side is more than MAX_ASPECT times the other."""
    height: int
    width: int
    height, width = image.shape[:2]
    return max(height, width) > MAX_ASPECT * min(height, width)


class MicroBatches:
    """Runs everything at once where memory allows: running out of it halves the batch for good, with a log entry."""

    def __init__(self, reward: str, *, batch: int = MAX_CANDIDATES) -> None:
        self.reward, self.batch_size = reward, batch

    def __call__(
        self, items: Sequence[ItemT], forward: Callable[[Sequence[ItemT]], Sequence[ResultT]]
    ) -> list[ResultT]:
        """`forward`'s results, one an item, in order."""
        results: list[ResultT] = []
        while len(results) < len(items):
            piece = items[len(results) : len(results) + self.batch_size]
            try:
                results += forward(piece)
                continue
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
            # not in the except block: its traceback holds the batch's tensors
            self.batch_size = len(piece) // 2
            torch.cuda.empty_cache()
            log.warning("batch_halved", reward=self.reward, batch=self.batch_size)
        return results
