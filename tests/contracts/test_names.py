"""Names of the three packages: found once, on a floor, and public where docs say so."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "dipole": ROOT / "shared/dipole",
    "dipole_ratings": ROOT / "services/dipole_ratings",
    "dipole_rewards": ROOT / "services/dipole_rewards",
    "dipole_trainer": ROOT / "trainer/dipole_trainer",
}
SHARED_NAMES: dict[str, str] = {
    "MicroBatches": "the same thing on either side of HTTP: pieces that are halved when memory runs out, of a reward's "
    "images and of a trainer's samples; the packages do not import each other, and `dipole` knows no torch",
}


def classes() -> Iterator[tuple[str, str]]:
    """(name, module) of every class that is defined at the top of a module."""
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    yield node.name, path.relative_to(ROOT).as_posix()


def test_no_two_public_classes_share_a_name() -> None:
    """Whoever reads a class's name in a log, a trace or a review finds one file; those kept have a reason."""
    homes = defaultdict(list)
    for name, module in classes():
        if not name.startswith("_"):
            homes[name].append(module)
    shared = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert {name: modules for name, modules in shared.items() if name not in SHARED_NAMES} == {}
    assert shared.keys() == SHARED_NAMES.keys(), "a reason is given for a name that is shared no longer"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_floor(package: str) -> None:
    """A folder or module that no layer of pyproject.toml names would be free to import whatever it likes."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["type"] == "layers" and each["containers"] == [package]]
    assert contract["exhaustive"] is True
    floors = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    rooms = {path.stem for path in PACKAGES[package].glob("*.py")} - {"__init__"}
    rooms |= {path.name for path in PACKAGES[package].iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms == floors


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_a_heap(package: str) -> None:
    """At most a dozen modules side by side, but for routes and plug-ins; and three at the trainer's root."""
    folders = [PACKAGES[package], *(path for path in PACKAGES[package].rglob("*") if path.is_dir())]
    counts = {
        folder.relative_to(ROOT).as_posix(): len({*folder.glob("*.py")} - {folder / "__init__.py"})
        for folder in folders
    }
    many = {folder for folder, count in counts.items() if count > 12}
    assert many <= {"trainer/dipole_trainer/api", "trainer/dipole_trainer/features", "services/dipole_rewards/rewards"}
    if package == "dipole_trainer":
        assert {path.stem for path in PACKAGES[package].glob("*.py")} == {"__init__", "spec", "seeds", "jsonable"}


@pytest.mark.parametrize("package", ["dipole", "dipole_rewards"])
def test_what_is_exported_is_there_and_on_the_page(package: str) -> None:
    """Each exported name can be imported, and docs/architecture.md says that it may."""
    module = importlib.import_module(package)
    page = (ROOT / "docs/architecture.md").read_text()
    (listed, *more) = re.findall(rf"`from {package} import ([\w, ]+)`", page)
    on_page = {name.strip() for text in (listed, *more) for name in text.split(",")}
    assert on_page == set(module.__all__)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)


def test_a_folder_says_what_it_is_and_runs_nothing() -> None:
    """A folder's __init__ says what the folder is; code in it would run for whoever needs a neighbour."""
    kept = {"", "cli", "client", "client/adapters", "conformance", "tiny_weights", "features", "generators", "methods"}
    for folder in PACKAGES.values():
        for path in folder.rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            where = path.parent.relative_to(folder).as_posix().removeprefix(".")
            if where not in kept:
                assert all(isinstance(node, ast.Expr) for node in body), path
