"""The wheel that is built from this tree: every file of data is in it, and it works in a folder that is not ours."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from dipole_rewards import tiny_weights

from ..processes import serving

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    ROOT / "shared/dipole", ROOT / "services/dipole_rewards", ROOT / "services/dipole_ratings",
    ROOT / "trainer/dipole_trainer",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=250)
    (found,) = folder.glob("dipole-*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, which sees our dependencies and not this tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    subprocess.run([*install, str(wheel)], check=True, timeout=250)
    # a path in a .pth is added as it is: the links to this tree that lie there are not followed
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin/python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """What a program of the environment prints, run in `folder`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DIPOLE_", "PYTHON"))}
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_data_is_in_it(wheel: Path) -> None:
    """Tables, pages, weights, tokenizers, migrations: whatever lies in the packages' folders."""
    there = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        names = {path.relative_to(package.parent).as_posix() for path in files}
        assert names - there == set()
    for ending in (".toml", ".js", ".css", ".html", ".safetensors", ".json", "versions/0001_the_first_tables.py"):
        assert any(name.endswith(ending) for name in there), f"nothing ends with {ending}: is the list above right?"


def test_it_runs_where_nothing_of_ours_lies(python: Path, tmp_path: Path) -> None:
    """The help, the list of rewards, and the tables behind it, out of the wheel."""
    where = run(
        python, tmp_path, "-c", "import dipole, dipole_rewards; print(dipole.__file__, dipole_rewards.__file__)"
    )
    assert all(path.startswith(str(python.parents[1])) for path in where.split())
    assert "rewards" in run(python, tmp_path, "-m", "dipole.cli", "--help")
    listed = run(python, tmp_path, "-m", "dipole.cli", "rewards", "list", "--api", "http://127.0.0.1:1", "--json")
    rewards = {row["name"]: row for row in map(json.loads, listed.splitlines())}
    assert rewards["pickscore"]["command"] == "dipole rewards prepare pickscore"
    assert rewards["pickscore"]["folder"] == str(tmp_path / "weights/pickscore")


def test_it_serves_a_reward(python: Path, tmp_path: Path) -> None:
    """By its short name, on weights in the folder where `prepare` puts them."""
    tiny_weights.write_weights(tmp_path / "weights/clip", "clip")

    def command(port: int) -> list[str]:
        return [str(python), "-m", "dipole.cli", "rewards", "serve", "clip", "--dtype", "fp32", "--port", str(port)]

    with serving(command, tmp_path / "log", cwd=tmp_path) as (url, _):
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
    assert (info["name"], info["verified"]) == ("clip", True)


def test_it_makes_the_database(python: Path, tmp_path: Path) -> None:
    """Its migrations are found where they were installed."""
    run(python, tmp_path, "-m", "dipole.cli", "db", "upgrade")
    assert (tmp_path / ".dipole/dipole.db").is_file()
