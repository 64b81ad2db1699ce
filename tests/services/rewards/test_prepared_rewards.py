"""`dipole rewards prepare` as a user types it: what it brings from a hub is what each reward loads."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import httpx
import pytest

from dipole.downloads.table import read_table
from dipole_rewards import tiny_weights
from dipole_rewards.settings import WeightSettings
from dipole_rewards.tiny_weights.hpsv3_files import TINY_INSTRUCTION

from ...fake_hub import run_dipole, running_hub, write_table
from ..conftest import Process

WHEEL = "hpsv3-1.0.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights of every reward, a folder each."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in tiny_weights.WRITERS:
        tiny_weights.write_weights(folder / name, name)
    return folder


def publish(weights: Path, reward: str, folder: Path) -> dict[str, Path]:
    """The reward's files as its sources have them: a folder for each."""
    found = {}
    for part in read_table().rewards[reward].parts:
        found[part.source] = folder / part.source
        for name in part.files:
            target = folder / part.source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights / reward / part.target_name(name), target)
    if reward == "hpsv3":
        # on the hub it is a field of tokenizer_config.json; transformers 5 writes a file of its own
        config = found["Qwen/Qwen2-VL-7B-Instruct"] / "tokenizer_config.json"
        template = (weights / reward / "chat_template.jinja").read_text()
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return found


def write_wheel(path: Path) -> None:
    """As the package of HPSv3, with the tiny one's instruction in two strings."""
    first, second = TINY_INSTRUCTION[:20], TINY_INSTRUCTION[20:]
    with zipfile.ZipFile(path, "w") as archive:
        module = f"import torch_that_is_not_here\nINSTRUCTION = {first!r}\nprompt_with_special_token = {second!r}\n"
        archive.writestr("hpsv3/dataset/data_collator_qwen.py", module)


@pytest.mark.parametrize("name", tiny_weights.WRITERS)
def test_what_is_prepared_is_what_the_reward_loads(name: str, weights: Path, tmp_path: Path) -> None:
    """Every file; the golden score alone is of whoever runs the published implementation."""
    with running_hub() as hub:
        published = publish(weights, name, tmp_path / "published")
        hub.repositories = published
        hub.files = {path.name: path for folder in published.values() for path in folder.iterdir() if path.is_file()}
        hub.files[WHEEL] = tmp_path / WHEEL
        write_wheel(tmp_path / WHEEL)
        text = hashlib.sha256(TINY_INSTRUCTION.encode()).hexdigest()
        table = write_table(hub, tmp_path / "table.toml", text_sha256=text)
        done = run_dipole(hub, "rewards", "prepare", name, cwd=tmp_path, DIPOLE_WEIGHTS_TABLE=str(table))
    folder = tmp_path / "weights" / name
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    shutil.copy(weights / name / "golden.json", folder)
    reward = tiny_weights.WRITERS[name][1].from_settings(
        WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu"
    )
    known = reward.golden()
    (score,) = reward.score(prompt=known.prompt, images=[known.image], metadata=known.metadata).scores
    assert score == pytest.approx(known.score, abs=known.tolerance)


def test_a_service_starts_on_what_was_prepared(weights: Path, tmp_path: Path, serve_process: Process) -> None:
    """By the built-in table, with no golden score, which it says; the list has what brings and verifies what."""
    with running_hub() as hub:
        hub.repositories = publish(weights, "pickscore", tmp_path / "published")
        assert run_dipole(hub, "rewards", "prepare", "pickscore", cwd=tmp_path).returncode == 0
        listed = run_dipole(hub, "rewards", "list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[0]: line.split()[1] for line in listed.stdout.splitlines() if line.strip()}
    assert (rows["pickscore"], rows["hpsv3"]) == ("here", "missing")
    assert "dipole rewards prepare hpsv3" in listed.stdout
    assert "no: dipole rewards verify pickscore" in listed.stdout
    folder = tmp_path / "weights/pickscore"
    with serve_process("pickscore", WEIGHTS=str(folder), DTYPE="fp32") as url:
        assert httpx.get(f"{url}/v1/info", trust_env=False).json()["verified"] is False
    (recorded,) = json.loads((folder / "recorded-scores.json").read_text())["scores"]
    known = json.loads((weights / "pickscore/golden.json").read_text())["score"]
    assert recorded["score"] == pytest.approx(known, rel=1e-5)
