"""Python's values on an accelerator, and rows of what is there, without the host waiting until its queue is empty.

`torch.tensor(values, device="cuda")`, and a list as an index, copy from memory that a device cannot read by itself,
and torch waits for such a copy and for all that was queued before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(
    values: Sequence[float] | NDArray[np.float64], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """(len(values),), on the device once it comes to it."""
    return send(torch.tensor(values, dtype=dtype), device)


def send(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's, on the device once it comes to it."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """`x[rows]`, not to be written to: a view without an index where rows are consecutive, as in most micro-batches."""
    first = rows[0]
    if list(rows) == list(range(first, first + len(rows))):
        return x[first : first + len(rows)]
    return x[to_device(rows, x.device)]
