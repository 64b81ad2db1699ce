"""Which trackers are installed here. No torch, and no tracker is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from dipole_trainer.spec import TrackerName


def list_installed_trackers() -> list[str]:
    """Trackers whose package this process could import."""
    return [name for name in get_args(TrackerName) if find_spec(name) is not None]


def install_advice(name: str) -> str:
    """How a tracker gets onto a worker's machine, in a clause."""
    return f"install it beside the worker with `pip install {name}` and restart the worker (docs/trackers.md)"
