"""`dipole rewards register` against a real trainer API on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from pydantic import SecretStr
from typer.testing import CliRunner

from dipole.cli import app
from dipole.client.trainer_api import TrainerApi
from dipole.settings import ApiSettings
from dipole_trainer.api.app import create_app

KEY = "a-key-of-enough-letters"


@pytest.fixture
def api_url(tmp_path: Path) -> Iterator[str]:
    """A trainer API with a key, over a database of its own."""
    settings = ApiSettings(
        home=tmp_path,
        database_url=f"sqlite:///{tmp_path}/jobs.db",
        artifacts_url=f"{tmp_path}/artifacts",
        api_key=SecretStr(KEY),
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_endpoints_are_registered_with_their_key_and_again_without_harm(api_url: str) -> None:
    """Each NAME=URL can be named by jobs afterwards, its key is kept, and a second run changes nothing."""
    words = ["rewards", "register", "shapes=http://127.0.0.1:8401", "other=http://localhost:8402"]
    for _ in range(2):
        done = CliRunner().invoke(
            app, [*words, "--api", api_url, "--key", KEY, "--reward-key", "secret-of-the-rewards"]
        )
        assert done.exit_code == 0, done.output
    with TrainerApi(api_url, KEY) as api:
        found = {each["name"]: (each["url"], each["has_key"]) for each in api.get("/v1/rewards")["data"]}
    assert found == {"shapes": ("http://127.0.0.1:8401", True), "other": ("http://localhost:8402", True)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shapes"], "must read NAME=URL"),
        (["shapes=http://elsewhere.example:8401"], "DIPOLE_REWARD_HOSTS"),
    ],
)
def test_what_cannot_be_registered_is_told_in_a_sentence(api_url: str, words: list[str], said: str) -> None:
    """A word without URL and a host that is not allowed exit with 1 and say what to mend."""
    done = CliRunner().invoke(app, ["rewards", "register", *words, "--api", api_url, "--key", KEY])
    assert done.exit_code == 1
    assert said in done.output


def test_a_kind_is_registered_with_its_options(api_url: str) -> None:
    """--kind, --option, --tls and --description reach the API, which refuses what the kind does not take."""
    words = ["rewards", "register", "judge=https://127.0.0.1:8000", "--kind", "vllm-score", "--tls", "lan"]
    reached = ["--api", api_url, "--key", KEY]
    done = CliRunner().invoke(app, [*words, "--option", "model=a=b", "--option", "max_candidates=8", *reached])
    assert done.exit_code == 0, done.output
    assert "judge is at https://127.0.0.1:8000 (vllm-score): registered" in done.output
    with TrainerApi(api_url, KEY) as api:
        found = api.get("/v1/rewards/judge")
    assert (found["kind"], found["options"], found["tls"]) == (
        "vllm-score", {"model": "a=b", "max_candidates": 8}, "lan",
    )  # fmt: skip
    for wrong, said in (("modl=x", "options.modl"), ("model", "must read NAME=VALUE")):
        done = CliRunner().invoke(app, [*words, "--option", wrong, *reached])
        assert done.exit_code == 1
        assert said in done.output


def test_a_file_is_applied_and_what_changed_is_told(
    api_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again without change; then by field; rewards that it does not name stay and are named. No key is printed."""
    monkeypatch.setenv("A_KEY", "secret-of-the-rewards")
    file = tmp_path / "rewards.toml"
    text = '[rewards.a]\nurl = "http://127.0.0.1:1"\nkey_env = "A_KEY"\n[rewards.b]\nurl = "http://127.0.0.1:{port}"\n'

    def apply(port: int) -> str:
        file.write_text(text.format(port=port))
        done = CliRunner().invoke(app, ["rewards", "apply", str(file), "--api", api_url, "--key", KEY])
        assert done.exit_code == 0, done.output
        assert "secret-of-the-rewards" not in done.output
        return done.output

    first = apply(2)
    assert "a is at http://127.0.0.1:1 (dipole): registered" in first
    assert "left as they are" not in first
    with TrainerApi(api_url, KEY) as api:
        api.post("/v1/rewards", {"name": "other", "url": "http://127.0.0.1:9"})
        assert api.get("/v1/rewards/a")["has_key"]
    assert apply(2).count(": unchanged") == 2
    monkeypatch.setenv("A_KEY", "another-secret-of-them")
    last = apply(3)
    assert "a is at http://127.0.0.1:1 (dipole): changed key" in last
    assert "b is at http://127.0.0.1:3 (dipole): changed url" in last
    assert f"not in {file}, left as they are: other" in last


def test_a_file_that_the_api_refuses_names_the_entry(api_url: str, tmp_path: Path) -> None:
    """And a file that is not right is not even sent."""
    file = tmp_path / "rewards.toml"
    for text, said in (
        ('[rewards.a]\nurl = "http://elsewhere.example"\n', "rewards.a: url names elsewhere.example"),
        ('[rewards.a]\nurl = "http://127.0.0.1:1"\nkey = "x"\n', "rewards.a: key: secrets are not in this file"),
    ):
        file.write_text(text)
        done = CliRunner().invoke(app, ["rewards", "apply", str(file), "--api", api_url, "--key", KEY])
        assert done.exit_code == 1
        assert said in done.output
