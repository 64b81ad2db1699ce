"""A group of images on its way through a network: too thin ones are set aside, the rest goes in pieces that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import torch

from dipole.schemas import MAX_CANDIDATES, ItemError
from dipole_rewards.reward import Pixels, Scores

log = structlog.get_logger()
MAX_ASPECT = 200  # a thinner image would be resized to millions of pixels, or to none
TOO_THIN = ItemError(code="aspect_ratio", message=f"one side is more than {MAX_ASPECT} times the other")
Forward = Callable[[Sequence[Pixels]], list[float]]


def except_thin(images: Sequence[Pixels], forward: Forward) -> Scores:
    """`forward`'s scores; an image beyond MAX_ASPECT gets null and the reason."""
    thin = [k for k, image in enumerate(images) if max(image.shape[:2]) > MAX_ASPECT * min(image.shape[:2])]
    rest = [k for k in range(len(images)) if k not in thin]
    scores = dict(zip(rest, forward([images[k] for k in rest]), strict=True))
    return Scores([scores.get(k) for k in range(len(images))], errors=dict.fromkeys(thin, TOO_THIN))


class InPieces:
    """Runs a whole group at once where memory allows: running out of it halves the batch, for good, and says so."""

    def __init__(self, reward: str, *, batch: int = MAX_CANDIDATES) -> None:
        self.reward, self.batch = reward, batch

    def __call__(self, images: Sequence[Pixels], forward: Forward) -> list[float]:
        scores: list[float] = []
        while len(scores) < len(images):
            piece = images[len(scores) : len(scores) + self.batch]
            try:
                scores += forward(piece)
                continue
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
            self.batch = len(piece) // 2  # not in the except block: its traceback holds the batch's tensors
            torch.cuda.empty_cache()
            log.warning("batch_halved", reward=self.reward, batch=self.batch)
        return scores
