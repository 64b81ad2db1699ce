"""SECURITY.md names controls that are there: every test in it is one of ours, every setting and page exists."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_every_control_has_a_test_that_is_there() -> None:
    controls = [
        line for line in TEXT.partition("## Controls")[2].partition("\n## ")[0].splitlines() if "`test_" in line
    ]
    assert len(controls) > 15
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert named <= written, named - written


def test_every_key_that_can_be_rotated_is_a_setting(reference: ModuleType) -> None:
    keys = set(re.findall(r"`(DIPOLE_\w+)`", TEXT))
    assert keys <= reference.setting_names()
