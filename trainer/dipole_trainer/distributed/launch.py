"""The process group that this process was started in."""

from __future__ import annotations

import os

from dipole_trainer.compute import gpu
from dipole_trainer.distributed.group import ProcessGroup


def current_group(device: str | None = None) -> ProcessGroup:
    """The group of processes that this one was started in."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from dipole_trainer.distributed.torch_group import TorchProcessGroup

        return TorchProcessGroup(on_cpu=gpu.is_cpu_forced())
    return ProcessGroup(device)
