"""The GPU between jobs: a finished job's memory is given back, and a lost context is noticed. It imports no torch."""

from __future__ import annotations

import gc
import sys
from typing import Any


def free() -> None:
    """Give back what a finished job holds: objects in reference cycles, and the memory that torch keeps of them."""
    gc.collect()
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.empty_cache()


def lost() -> bool:
    """Whether nothing computes on the GPU any more in this process, though it did: a kernel's fault outlives its job.

    Asked by computing, and not by the fault's type: others of that type harm their own job alone.
    """
    if (torch := _torch_on_cuda()) is None:
        return False
    try:
        torch.zeros(1, device="cuda").item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def _torch_on_cuda() -> Any:
    """torch, where this process has used CUDA."""
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
