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
from dipole.cli.rest import Api
from dipole.settings import ApiSettings
from dipole_trainer.api import create_app

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
    with Api(api_url, KEY) as api:
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
