"""The command line names our other packages by string, where no type checker looks: each name is there."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

CLI = Path(__file__).resolve().parents[2] / "shared/dipole/cli"


def named_module(node: ast.AST) -> str | None:
    """The module of `import_optional("module", …)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_optional":
        (name, *_) = node.args
        return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
    return None


def assignments(function: ast.AST) -> Iterator[tuple[str, str]]:
    """(variable, module) of what a function imports, also in a tuple."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            targets, values = (
                (target.elts, node.value.elts)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else ([target], [node.value])
            )
            for each, value in zip(targets, values, strict=True):
                if isinstance(each, ast.Name) and (module := named_module(value)):
                    yield each.id, module


def names() -> Iterator[tuple[str, str]]:
    """(module, attribute) of everything that the command line takes from a module it names by string."""
    for path in sorted(CLI.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                variables = dict(assignments(function))
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute):
                        known = (
                            variables.get(node.value.id)
                            if isinstance(node.value, ast.Name)
                            else named_module(node.value)
                        )
                        if known:
                            yield known, node.attr


NAMES = sorted(set(names()))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_what_the_command_line_calls_exists(module: str, name: str) -> None:
    """A renamed function of the trainer is renamed here too."""
    assert hasattr(importlib.import_module(module), name)


def test_all_of_them_are_found() -> None:
    """The processes that `dipole serve` runs are among them."""
    assert ("dipole_trainer.worker.process", "run_worker") in NAMES
    assert ("dipole_trainer.sampler.process", "run_sampler") in NAMES
    assert ("dipole_trainer.database.engine", "upgrade_database") in NAMES
