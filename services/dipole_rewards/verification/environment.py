"""An environment for a published implementation: a virtual environment of its own, with nothing of ours in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole.errors import DownloadError

INSTALLED_NOTE = "installed.json"  # what an environment has; without it the install was cut short
LOG_FILE = "log.txt"
MAX_REASON_CHARS = 300


class PublishedImplementationFailed(DownloadError):
    """It was installed, and gave no score."""


@dataclass(frozen=True)
class Environment:
    """A folder with a virtual environment in it, which the next verification uses again."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv/bin/python"

    @property
    def log(self) -> Path:
        return self.folder / LOG_FILE

    def has(self, requirements: Sequence[str]) -> bool:
        try:
            return bool(json.loads((self.folder / INSTALLED_NOTE).read_text()) == list(requirements))
        except (FileNotFoundError, ValueError):
            return False

    def install(self, requirements: Sequence[str], *, python: str, packages: Path | None) -> None:
        """Make it anew and install; pip's own progress goes to stderr. Raises DownloadError.

        With `packages`, a folder of wheels, no index is asked. The user's constraints are of other environments.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        venv = [python, "-m", "venv", str(self.python.parents[1])]
        try:
            made = subprocess.run(venv, capture_output=True, text=True, env=_clean_environment(), check=False)  # noqa: S603
        except OSError as error:
            raise DownloadError(
                f"{python} cannot be run ({error.strerror}): name another Python with --python"
            ) from error
        if made.returncode:
            said = _last_line(made.stdout + made.stderr)
            raise DownloadError(
                f"{python} cannot make a virtual environment in {self.folder} ({said}): on Debian, apt-get install "
                "python3-venv; or name another Python with --python"
            )
        offline = ["--no-index", "--find-links", str(packages.absolute())] if packages else []
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--log", str(self.log)]
        constraints = {"PIP_CONSTRAINT": os.devnull}
        installed = subprocess.run(  # noqa: S603
            [*pip, *offline, *requirements], stdout=sys.stderr, env=_clean_environment() | constraints, check=False
        )
        if installed.returncode:
            raise DownloadError(
                f"pip cannot install {', '.join(requirements)} ({_pip_error(self.log)}): {self.log} has its messages; "
                "try again, or name a folder that has the packages with --packages, or another Python with --python"
            )
        (self.folder / INSTALLED_NOTE).write_text(json.dumps(list(requirements)))

    def run(self, script: Path, asked: dict[str, Any]) -> float:
        """The score that a script prints in its last line. Raises PublishedImplementationFailed.

        It runs in an empty folder, with no modules but the environment's, and downloads nothing.
        """
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with tempfile.TemporaryDirectory(prefix="dipole-verify-") as nowhere:
            ended = subprocess.run(  # noqa: S603
                [str(self.python), "-I", str(script), json.dumps(asked)],
                cwd=nowhere,
                env=_clean_environment() | offline,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        with self.log.open("a", encoding="utf-8") as log:
            log.write(ended.stdout + ended.stderr)
        if ended.returncode:
            raise PublishedImplementationFailed(
                f"the published implementation ended without a score ({_last_line(ended.stderr)}): {self.log} has all "
                "that it said"
            )
        try:
            return float(json.loads(_last_line(ended.stdout, None))["score"])
        except (ValueError, TypeError, KeyError) as error:
            raise PublishedImplementationFailed(
                f"{script.name} printed no score: {self.log} has all that it said"
            ) from error


def _clean_environment() -> dict[str, str]:
    """Without what leads Python to other packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _last_line(text: str, longest: int | None = MAX_REASON_CHARS) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:longest] if lines else "it said nothing"


def _pip_error(log: Path) -> str:
    """The last line that pip calls an error; its log has a time before each line."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    errors = [line.partition("ERROR: ")[2] for line in said.splitlines() if "ERROR: " in line]
    return _last_line("\n".join(errors))
