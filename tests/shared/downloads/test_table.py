"""The table of published weights, and a table of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dipole.downloads.table import find_model_command, find_reward_command, read_table
from dipole.errors import ConfigurationError, InvalidInput


def test_the_built_in_table_names_what_can_be_asked_for() -> None:
    """Revisions are commits, checksums are SHA-256, addresses are HTTPS; what is not known is not there."""
    table = read_table()
    for name, source in table.sources.items():
        assert source.url is None or source.url.startswith("https://")
        is_package = name in {weights.text.source for weights in table.rewards.values() if weights.text}
        if source.url is None and not is_package:
            assert re.fullmatch(r"[\w-]+/[\w.-]+", name)
            assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in source.sha256.values())
    assert set(table.rewards) == {"clip", "pickscore", "aesthetic", "hpsv2", "imagereward", "geneval", "hpsv3", "style"}


def test_missing_weights_are_told_with_the_command(tmp_path: Path) -> None:
    """For the very folder, quoted for a shell; none for what the table does not have, or has of another revision."""
    where = tmp_path / "a b"
    assert find_model_command("stabilityai/sd-turbo", where) == f"dipole models fetch sd-turbo --to '{where}'"
    pinned = read_table().sources["stabilityai/sd-turbo"].revision
    assert find_model_command("stabilityai/sd-turbo", where, revision=pinned) is not None
    assert find_model_command("stabilityai/sd-turbo", where, revision="0" * 40) is None
    assert find_model_command("org/else", where) is None
    assert find_reward_command("pickscore", tmp_path) == f"dipole rewards prepare pickscore --to {tmp_path}"
    assert find_reward_command("mine", tmp_path) is None


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    """And how anything else of the hub is fetched."""
    with pytest.raises(
        InvalidInput, match=r"'nobody' is none of the published models: sd-turbo, .*hf download org/name"
    ):
        read_table().find("models", "nobody")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sources", "is no TOML"),
        ("[sources.a]\nsha265 = {}", r"is wrong: sources\.a\.sha265: Extra inputs"),
        ('[sources]\n[models.a]\nparts = [{source = "b", files = ["c"]}]', r"a names the source 'b'"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_wrong_table_is_told_with_its_place(tmp_path: Path, text: str | None, told: str) -> None:
    """The file is named."""
    path = tmp_path / "table.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"table\.toml.*{told}"):
        read_table(path)


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [("dipole.downloads.table", ["httpx", "huggingface_hub", "torch"]), ("dipole.cli", ["huggingface_hub", "torch"])],
)
def test_asking_what_is_missing_needs_no_client(module: str, unneeded: list[str]) -> None:
    """Neither the table nor the command line imports what only fetching needs."""
    code = f"import sys, {module}; sys.exit(str([name for name in {unneeded} if name in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
