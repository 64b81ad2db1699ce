"""rewards.toml: what it declares, and that each mistake names its entry, its field and the fix."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from dipole.client import rewards_file
from dipole.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[3]


def written(folder: Path, text: str) -> Path:
    path = folder / "rewards.toml"
    path.write_text(textwrap.dedent(text))
    return path


def test_the_example_is_one_and_names_its_secrets_only() -> None:
    """examples/rewards.toml reads, with keys from the environment; nothing in it or of it shows them."""
    path = ROOT / "examples/rewards.toml"
    keys = {"HPSV3_KEY": "key-of-hpsv3-1234", "JUDGE_KEY": "key-of-judge-1234"}
    found = rewards_file.read_rewards_file(path, keys)
    assert {name: (each.endpoint.kind, each.endpoint.tls) for name, each in found.items()} == {
        "hpsv3": ("dipole", None),
        "judge": ("vllm-score", None),
        "wise": ("unirl-score", None),
        "cosmos": ("cosmos-rl-reward", None),
        "flow": ("flow-factory-compute", None),
        "brand": ("dipole", "team-go"),
    }
    key = found["judge"].endpoint.key
    assert key is not None
    assert key.get_secret_value() == keys["JUDGE_KEY"]
    assert not any(secret in repr(found) for secret in keys.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rewards.judge", "is not TOML"),
        ("", "rewards: Field required; entries read"),
        ('[reward.judge]\nurl = "http://h"', "entries read"),
        ('[rewards."a b"]\nurl = "http://h"', r"rewards\.a b"),
        ("[rewards.judge]", "rewards.judge: url: Field required"),
        ('[rewards.judge]\nurl = "http://h"\nkind = "tgi"', "rewards.judge: kind: .*'vllm-score'"),
        ('[rewards.judge]\nurl = "http://h"\nurls = "x"', "rewards.judge: urls: .*an entry takes url, kind, options"),
        ('[rewards.judge]\nurl = "http://h"\nkey = "secret-text"', "rewards.judge: key: secrets are not in this file"),
        ('[rewards.judge]\nurl = "http://h"\nkey_env = "no name"', "rewards.judge: key_env"),
        ('[rewards.judge]\nurl = "http://h"\nkey_env = "UNSET"', "rewards.judge: key_env: UNSET is not set"),
        ('[rewards.judge]\nurl = "http://h"\nkey_env = "BROKEN"', "rewards.judge: key: must be printable ASCII"),
        (
            '[rewards.judge]\nurl = "http://h"\nkind = "unirl-score"',
            "rewards.judge: options.reward: .*takes the options",
        ),
        ('[rewards.judge]\nurl = "https://h"\ntls = "../other"', "rewards.judge: tls"),
        ('[rewards.judge]\nurl = "http://h"\ntls = "team"', "rewards.judge: tls is given, but .*https"),
    ],
)
def test_a_wrong_file_names_entry_field_and_fix(tmp_path: Path, text: str, said: str) -> None:
    """And never the secret."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        rewards_file.read_rewards_file(path, {"BROKEN": "secret-text\n"})
    assert str(path) in str(caught.value)
    assert "secret-text" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"nowhere.toml: {os.strerror(2)}"):
        rewards_file.read_rewards_file(tmp_path / "nowhere.toml")
