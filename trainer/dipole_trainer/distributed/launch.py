"""The process group that this process was started in."""

from __future__ import annotations

import os

from dipole_trainer.compute import gpu
from dipole_trainer.distributed.group import World


def join(device: str | None = None) -> World:
    """The world that this process was started in."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from dipole_trainer.distributed.torch_group import Together

        return Together(on_cpu=gpu.is_cpu_forced())
    return World(device)
