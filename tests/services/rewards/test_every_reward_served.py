"""Every reward as a user serves it: from tiny weights in a process of its own, checked by the conformance suite."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole import conformance
from dipole_rewards import tiny_weights

from ..conftest import Process

SCRIPT = Path(__file__).parents[3] / "scripts/tiny-weights"
PROGRAMS = {
    "shapes": "dipole_rewards.rewards.shapes:Shapes",
    "colourfulness": "dipole_rewards.rewards.colourfulness:Colourfulness",
}
METADATA: dict[str, dict[str, Any]] = {
    "shapes": {"include": [{"class": "square", "color": "red", "count": 1}]},
    "geneval": {"include": [{"class": "stop sign", "color": "red", "count": 1}]},
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """{reward: (its import string, its folder)}, by the lines that scripts/tiny-weights prints."""
    folder = tmp_path_factory.mktemp("weights")
    said = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in said.splitlines():
        variable, *command = shlex.split(line)
        name, _, value = variable.partition("=")
        assert (name, Path(command[0]).name) == ("DIPOLE_REWARD_WEIGHTS", "dipole")
        assert command[1:3] == ["rewards", "serve"]
        found[Path(value).name] = (command[3], value)
    return found


@pytest.mark.parametrize("name", [*PROGRAMS, *tiny_weights.WRITERS])
def test_it_starts_and_passes_the_strict_suite(
    name: str, printed: dict[str, tuple[str, str]], serve_process: Process
) -> None:
    """Served by the line that scripts/tiny-weights prints, no check of `dipole rewards check --strict` fails."""
    reward, folder = printed[name] if name in printed else (PROGRAMS[name], "")
    weights = {"WEIGHTS": folder} if folder else {}
    with serve_process(reward, MAX_BODY_BYTES="3000000", **weights) as url:
        info = httpx.get(f"{url}/v1/info", trust_env=False).json()
        results = conformance.run_checks(url)
        (scored,) = conformance.run_checks(url, metadata=METADATA.get(name), only=["scores_something"])
    assert [result for result in results if result.outcome not in ("passed", "skipped")] == []
    assert scored.outcome == "passed"
    assert info["name"] == name
    assert info["model_revision"].startswith("sha256:" if folder else "1")


@pytest.mark.parametrize("name", tiny_weights.WRITERS)
def test_without_its_weights_it_ends_with_a_sentence(
    name: str, printed: dict[str, tuple[str, str]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """An empty folder: the service ends at once, and the last line names what is missing and how it is had."""
    said = refused(printed[name][0], WEIGHTS=str(tmp_path / "none"))
    assert "missing" in said
    assert "fetch it with" in said or "says what belongs there" in said
    assert "Traceback" not in said
