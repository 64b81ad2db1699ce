"""A text out of a published package: read as a syntax tree, compared, and nothing of the package runs."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from dipole.downloads.fetch import FetchedWeights, fetch_weights
from dipole.downloads.hub import PublishedOrigin
from dipole.downloads.local_folder import FolderOrigin
from dipole.downloads.package_text import download_wheel
from dipole.downloads.remote_file import Checksum
from dipole.downloads.table import PackageText, WeightsTable
from dipole.errors import DownloadError

from ...fake_hub import FakeHub
from .conftest import REPOSITORY, SilentReport

WHEEL = "judge-1.0.0-py3-none-any.whl"
TEXT = "\nHow good is it? Prompt – {text_prompt}\n<|Reward|>\n"
MODULE = """
import nothing_that_is_installed
open({trap!r}, "w").close()
INSTRUCTION = "\\nHow good is it? Prompt – {{text_prompt}}\\n"
OTHER = INSTRUCTION + "!"
special = '''<|Reward|>
'''
"""


def write_wheel(path: Path, source: str) -> str:
    """Returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("judge/data.py", source)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_table(hub: FakeHub, wheel_sha256: str, **changes: Any) -> WeightsTable:
    text = {
        "into": "instruction.txt", "source": "package", "wheel": WHEEL, "module": "judge/data.py",
        "constants": ["INSTRUCTION", "special"], "sha256": hashlib.sha256(TEXT.encode()).hexdigest(), **changes,
    }  # fmt: skip
    package = {"url": hub.url + "/files/{file}", "sha256": {WHEEL: wheel_sha256}}
    judge = {"parts": [{"source": REPOSITORY, "files": ["config.json"]}], "text": text}
    return WeightsTable.model_validate({"sources": {REPOSITORY: {}, "package": package}, "rewards": {"judge": judge}})


def fetch(hub: FakeHub, table: WeightsTable, target: Path) -> FetchedWeights:
    origin = PublishedOrigin(table, HfApi(endpoint=hub.url))
    return fetch_weights(table.rewards["judge"], target, origin=origin, progress=SilentReport())


def test_the_text_is_read_and_nothing_is_run(hub: FakeHub, tmp_path: Path) -> None:
    """The module would leave a trace. The wheel goes again; a second run leaves the text, and mends a changed one."""
    hub.files[WHEEL] = tmp_path / WHEEL
    table = make_table(hub, write_wheel(tmp_path / WHEEL, MODULE.format(trap=str(tmp_path / "trap"))))
    fetch(hub, table, tmp_path / "judge")
    made = tmp_path / "judge/instruction.txt"
    assert made.read_text() == TEXT
    assert not (tmp_path / "trap").exists()
    assert not list((tmp_path / "judge").rglob("*.whl*"))
    asked = hub.fetched().count(WHEEL)
    fetch(hub, table, tmp_path / "judge")
    assert hub.fetched().count(WHEEL) == asked
    made.write_text("changed")
    fetch(hub, table, tmp_path / "judge")
    assert made.read_text() == TEXT


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("INSTRUCTION = 'another'\nspecial = ''", "holds another text than the one that is known for instruction.txt"),
        ("INSTRUCTION = 'x'", "has no string special"),
        ("def", r"no readable judge/data\.py"),
    ],
)
def test_another_text_is_no_text(hub: FakeHub, tmp_path: Path, source: str, told: str) -> None:
    """Nothing is written for it."""
    hub.files[WHEEL] = tmp_path / WHEEL
    table = make_table(hub, write_wheel(tmp_path / WHEEL, source))
    with pytest.raises(DownloadError, match=told):
        fetch(hub, table, tmp_path / "judge")
    assert not (tmp_path / "judge/instruction.txt").exists()


def test_without_a_network_the_text_or_the_wheel_serves(hub: FakeHub, tmp_path: Path) -> None:
    """Else the sentence has the command that brings the wheel."""
    given = tmp_path / "given"
    table = make_table(hub, write_wheel(given / WHEEL, MODULE.format(trap=str(tmp_path / "trap"))))
    (given / "config.json").write_text("{}")

    def bring(name: str) -> None:
        target = tmp_path / name / "judge"
        origin = FolderOrigin(table, given, "judge")
        fetch_weights(table.rewards["judge"], target, origin=origin, progress=SilentReport())
        assert (target / "instruction.txt").read_text() == TEXT

    bring("from-wheel")
    (given / WHEEL).rename(tmp_path / WHEEL)
    with pytest.raises(
        DownloadError, match=r"neither instruction\.txt nor judge-1.* `pip download --no-deps judge==1\.0\.0`"
    ):
        bring("from-nothing")
    (given / "instruction.txt").write_text(TEXT)
    bring("from-text")


def test_a_wheel_that_pip_cannot_bring_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index, as without a network: what was wanted, and how to bring it by hand."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    text = PackageText(
        into="instruction.txt", source="package", wheel=WHEEL, module="judge/data.py", constants=[], sha256="0" * 64
    )
    with pytest.raises(DownloadError, match=r"pip cannot bring judge 1\.0\.0, .* with --from"):
        download_wheel(text, Checksum("sha256", "0" * 64))
