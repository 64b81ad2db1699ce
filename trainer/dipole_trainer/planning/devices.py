"""Common accelerators by memory and peak rate, from their makers' data sheets, and this machine's own, measured.

Rates are dense ones, in 10¹² floating-point operations a second. `half` is bf16 (fp16 where there is no bf16) with sums
in float32, `single` is float32 without TF32, as torch computes by default.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from dipole.errors import InvalidInput
from dipole_trainer.compute import gpu
from dipole_trainer.spec import Precision

# shares of the peak rate that an update may reach: U-Nets and VAEs of these sizes, kernels of PyTorch
UTILISATION = (0.25, 0.6)
MEASURED_UTILISATION = (0.4, 1.0)  # of a rate that was measured with convolutions and matrix products
USABLE_MEMORY = 0.92  # the rest is CUDA's context, its libraries' workspaces and fragmentation


@dataclass(frozen=True)
class Device:
    """`memory_bytes`, and peak rates in operations a second."""

    name: str
    memory_bytes: int
    half: float
    single: float
    is_measured: bool = False
    has_bf16: bool = True
    is_cpu: bool = False

    @property
    def usable_bytes(self) -> int:
        """What tensors may have."""
        return int(self.memory_bytes * USABLE_MEMORY)

    def default_precision(self) -> Precision:
        """What a job computes in here that names no precision."""
        return gpu.default_precision(self.name, lambda name: self.has_bf16)

    def rate(self, precision: str) -> float:
        return self.single if precision == "fp32" else self.half


def _card(name: str, gib: float, half: float, single: float, *, has_bf16: bool = True) -> Device:
    return Device(name, int(gib * 2**30), half * 1e12, single * 1e12, has_bf16=has_bf16)


DEVICES = {
    device.name: device
    for device in (
        _card("t4", 15, 65, 8.1, has_bf16=False),
        _card("v100", 32, 125, 15.7, has_bf16=False),
        _card("l4", 22.5, 121, 30.3),
        _card("a10g", 22.5, 70, 31.5),
        _card("rtx-3090", 24, 71, 35.6),
        _card("rtx-4090", 24, 165, 82.6),
        _card("rtx-5090", 32, 210, 105),
        _card("l40s", 45, 362, 91.6),
        _card("a100-40", 40, 312, 19.5),
        _card("a100", 80, 312, 19.5),
        _card("h100", 80, 989, 67),
        _card("h200", 141, 989, 67),
    )
}


# those that are planned for where nobody says which: the smallest that people train on, the commonest, a data centre's
DEFAULT_DEVICES = ("rtx-3090", "rtx-4090", "a100", "h100")


def find_device(name: str) -> Device:
    """A known card, or `here`, which measures this machine. Raises InvalidInput."""
    if name == "here":
        return measure_device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in DEVICES:
        raise InvalidInput(f"device: {name!r} is not known; known are here, {', '.join(DEVICES)}", field="device")
    return DEVICES[name]


def measure_device(device: str) -> Device:
    """This machine's GPU, or its processor: memory as it is, rates by a matrix product in each precision."""
    if device == "cpu":
        memory, side = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1024
    else:
        memory, side = torch.cuda.get_device_properties(device).total_memory, 8192
    half, single = (_measure_rate(device, dtype, side) for dtype in (torch.bfloat16, torch.float32))
    name, has_bf16 = f"this machine's {device}", gpu.supports_bf16(device)
    return Device(name, memory, half, single, is_measured=True, has_bf16=has_bf16, is_cpu=device == "cpu")


def _measure_rate(device: str, dtype: torch.dtype, side: int) -> float:
    """Operations a second of matrix products side × side, for about 0.2 seconds."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()

    multiply()
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < 0.2:
        multiply()
        count += 1
    return 2 * side**3 * count / elapsed
