"""Imported first by the Python scripts beside it: they run by the Python that has their packages, whoever starts them.

Where the Python at hand has no `dipole`, the one of this checkout's .venv (`make install`) takes over; a package that
is missing all the same is told in a sentence. Reads and runs on Pythons that are too old for the rest.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"


def explain_missing_package(kind, error, trace):  # type: ignore[no-untyped-def]  # an old Python's signature
    if issubclass(kind, ImportError):
        sys.exit(f"{sys.argv[0]}: {error}. Run `make install` in {ROOT}, or activate an environment that has it.")
    sys.__excepthook__(kind, error, trace)


if importlib.util.find_spec("dipole") is None and Path(sys.prefix) != VENV and (VENV / "bin/python").exists():
    os.execv(VENV / "bin/python", [str(VENV / "bin/python"), *sys.argv])
sys.excepthook = explain_missing_package
