"""The pages' modules fit each other: a browser would run none of a page whose import names nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in ROOT.glob("*/**/static/*.js") if ".venv" not in path.parts)


def exported_names(module: Path) -> set[str]:
    text = module.read_text()
    found = set(re.findall(r"^export (?:async )?(?:function\*?|class|const|let) ([\w$]+)", text, re.MULTILINE))
    for group in re.findall(r"^export \{([^}]*)\}", text, re.MULTILINE):
        found |= {name.split(" as ")[-1].strip() for name in group.split(",")}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_every_name_imported_is_exported(module: Path) -> None:
    """And the module that it comes from is there."""
    for names, source in re.findall(r"^import \{([^}]*)\} from \"(\./[^\"]+)\"", module.read_text(), re.MULTILINE):
        wanted = {name.split(" as ")[0].strip() for name in names.split(",")} - {""}
        assert wanted <= exported_names(module.parent / source), source
