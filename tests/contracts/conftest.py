"""What the contract tests read: the repository's root, and the code's own list of settings, commands and routes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ..scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """scripts/write-reference as a module."""
    return load_script("write-reference")
