"""Files of weights that broke on their way, for every reward that has some: each is named in one sentence at start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.settings import WeightSettings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        reward: tiny_weights.write_weights(tmp_path_factory.mktemp(reward), reward) for reward in tiny_weights.WRITERS
    }


def open_reward(reward: str, folder: Path) -> None:
    tiny_weights.WRITERS[reward][1].from_settings(WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu")


@pytest.mark.parametrize("content", ["", "[]", "null", "<html>404</html>", "\xff"])
@pytest.mark.parametrize("reward", tiny_weights.WRITERS)
def test_a_damaged_json_file_is_named(reward: str, content: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """What a download that failed leaves behind stops the start with that file's name, not with a parser's words."""
    whole, damaged = folders[reward], tmp_path / "damaged"
    names = [path.relative_to(whole) for path in whole.rglob("*.json") if path.name != "tokenizer_config.json"]
    if reward == "aesthetic":
        names = [name for name in names if name.name != "tokenizer.json"]  # which it does not read
    assert len(names) >= 2
    for name in names:
        shutil.copytree(whole, damaged, dirs_exist_ok=True)
        (damaged / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigurationError, match=str(damaged / name)):
            open_reward(reward, damaged)


@pytest.mark.parametrize("reward", ["clip", "hpsv3", "geneval"])
def test_a_configuration_of_another_size_takes_no_memory(reward: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """It is refused by the shapes that it asks for: a network of many gigabytes is never made of a wrong file."""
    shutil.copytree(folders[reward], tmp_path, dirs_exist_ok=True)
    (config,) = tmp_path.glob("detector/config.json" if reward == "geneval" else "config.json")
    shape = json.loads(config.read_text())
    if reward == "geneval":
        shape["mask_feature_size"] = shape["feature_size"] = 2**24
    else:
        shape.get("text_config", shape)["intermediate_size"] = 2**34
    config.write_text(json.dumps(shape))
    with pytest.raises(ConfigurationError, match=r" is \[.*, not \["):
        open_reward(reward, tmp_path)


def test_a_chat_template_that_is_missing_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """It lies beside the tokenizer, in a file that no code of ours opens, and without it there is no question."""
    shutil.copytree(folders["hpsv3"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match="chat template"):
        open_reward("hpsv3", tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_named_before_anything_is_read(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its setting; torch's own words do not say where the name came from."""
    monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"DIPOLE_REWARD_DEVICE='{device}'"):
        tiny_weights.WRITERS["clip"][1].load(device)
