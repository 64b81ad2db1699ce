"""The device that a process computes on, and a GPU between jobs: its memory given back, a lost context noticed.

torch is imported where it is needed and not before, as the worker's process imports this.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from dipole_trainer.spec import Precision


def default_device() -> str:
    """A GPU where there is one, unless `accelerate launch --cpu` said otherwise."""
    import torch

    return "cuda" if torch.cuda.is_available() and not is_cpu_forced() else "cpu"


def is_cpu_forced() -> bool:
    """`accelerate launch --cpu` says so in the environment, and leaves it to the program to look."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def supports_bf16(device: str) -> bool:
    """Whether it is a GPU that computes in bf16 itself: older ones emulate it, slower than float32."""
    import torch

    if not device.startswith("cuda"):
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def default_precision(device: str, has_bf16: Callable[[str], bool] = supports_bf16) -> Precision:
    """What a device computes in where nobody says. Never fp16: its range is too small to be chosen silently."""
    return "bf16" if has_bf16(device) else "fp32"


def describe_devices() -> list[dict[str, Any]]:
    """What this process computes on, as JSON: `kind`, `name` and `memory_bytes` of each GPU, or of the processor.

    GPUs are torch's to name, where it is loaded: a worker has it before it says anything.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and not is_cpu_forced():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [{"kind": "cuda", "name": each.name, "memory_bytes": each.total_memory} for each in found]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [{"kind": "cpu", "name": platform.processor() or platform.machine(), "memory_bytes": memory}]


def free_memory() -> None:
    """Give back what a finished job holds: objects in reference cycles, and the memory that torch keeps of them."""
    gc.collect()
    if (torch := _torch_on_cuda()) is not None:
        torch.cuda.empty_cache()


def is_context_lost() -> bool:
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
