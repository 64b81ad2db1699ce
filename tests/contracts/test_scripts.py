"""scripts/ are seen by no type checker and imported by no test: each at least starts, whoever starts it from where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and not path.suffix]
PYTHON_SCRIPTS = [path for path in SCRIPTS if "python3" in path.read_text().partition("\n")[0]]


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin"}  # no environment is activated
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_is(script: Path, tmp_path: Path) -> None:
    """`--help` works from any folder without an activated environment, shows how it is called, and writes nothing."""
    interpreter = [sys.executable] if script in PYTHON_SCRIPTS else []
    done = run(*interpreter, script, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert script.name in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", PYTHON_SCRIPTS, ids=lambda path: path.name)
def test_a_python_without_our_packages_is_told_in_a_sentence(script: Path, tmp_path: Path) -> None:
    """Where this checkout has no .venv either; it names the package and the command."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for path in (script, script.with_name("own_interpreter.py")):
        (scripts / path.name).write_bytes(path.read_bytes())
    done = run(sys.executable, "-S", scripts / script.name, "--help", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{scripts / script.name}: No module named ")
    assert "make install" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_of_the_checkout_takes_over(tmp_path: Path) -> None:
    """A Python without our packages starts the script again with .venv's, with all that was asked for."""
    scripts, own = tmp_path / "scripts", tmp_path / ".venv/bin/python"
    for folder in (scripts, own.parent):
        folder.mkdir(parents=True)
    (scripts / "own_interpreter.py").write_bytes((ROOT / "scripts/own_interpreter.py").read_bytes())
    (scripts / "any").write_text("import own_interpreter\n")
    own.write_text('#!/bin/sh\necho "$@"\n')
    own.chmod(0o755)
    done = run(sys.executable, "-S", scripts / "any", "a b", "--c", folder=tmp_path)
    assert done.stdout == f"{scripts / 'any'} a b --c\n", done.stderr
