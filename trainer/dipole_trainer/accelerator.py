"""The GPU between jobs: a finished job's memory is given back. It imports no torch."""

from __future__ import annotations

import gc
import sys
from typing import Any


def free() -> None:
    """Give back what a finished job holds: objects in reference cycles, and the memory that torch keeps of them."""
    gc.collect()
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.empty_cache()


def _torch_on_cuda() -> Any:
    """torch, where this process has used CUDA."""
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
