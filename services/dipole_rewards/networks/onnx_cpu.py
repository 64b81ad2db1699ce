"""Where onnxruntime computes: on the CPU, with as many threads as it is told. Left alone it would take every core.

It knows nothing of OMP_NUM_THREADS itself.
"""

from __future__ import annotations

import os

from dipole.errors import ConfigurationError


def count_threads() -> int:
    """OMP_NUM_THREADS as torch reads it, else the cores that this process may use; never more than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(int(wanted), cores)) if wanted.isdecimal() else cores


def refuse_other_device(reward: str, device: str) -> None:
    """Raises ConfigurationError unless the device is the CPU, the only one that the packages here compute on."""
    if device.partition(":")[0] != "cpu":
        raise ConfigurationError(f"DIPOLE_REWARD_DEVICE={device!r}: {reward} computes on the CPU; leave it at auto")
