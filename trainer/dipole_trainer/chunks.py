"""A batch in chunks, joined again: what needs no graph takes a chunk's memory, however many candidates there are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def mapped(call: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> Tensor:
    """`call` of every `size` rows of (K, …), as one tensor."""
    return torch.cat([call(batch[rows]) for rows in slices(len(batch), size)])


def featured(phi: Callable[[Tensor], dict[str, Tensor]], x: Tensor, size: int) -> dict[str, Tensor]:
    """φ of every `size` samples of (K, …), as one {key: (K, T, D)}."""
    parts = [phi(x[rows]) for rows in slices(len(x), size)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
