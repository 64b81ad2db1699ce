"""What the API's image must not load, seen in a process and not only in the import graph."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")


@pytest.mark.parametrize(
    "module",
    [
        "dipole_trainer.api.app",
        "dipole_trainer.rank_worker.process",
        "dipole_trainer.sampler.process",
        "dipole_rewards.app",
        "dipole.cli",
    ],
)
def test_a_small_image_never_loads_torch(module: str) -> None:
    """Importing the module of a process without torch leaves torch and its companions unloaded."""
    assert importlib.util.find_spec(module)
    script = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
