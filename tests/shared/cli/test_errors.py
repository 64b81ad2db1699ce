"""Whatever a user's environment, folders and words can cause is one sentence and exit code 1, never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dipole.cli import app

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
LIST = ("jobs", "list", "--api", "https://api.invalid:8400")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "words", "sentence"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, LIST, "SOCKS"),
        ({"HTTPS_PROXY": "gopher://127.0.0.1:9"}, LIST, "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://[::1"}, LIST, "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "127.0.0.1:1"}, LIST, "no answer from"),
        ({"NO_PROXY": "[::1],localhost"}, LIST, "no answer from"),
        ({"SSL_CERT_FILE": "/nonexistent.pem"}, LIST, "SSL_CERT_FILE"),
        ({"SSL_CERT_FILE": os.devnull}, LIST, "SSL_CERT_FILE"),
        ({"DIPOLE_API_KEY": "schlüssel"}, LIST, "DIPOLE_API_KEY"),
        ({"DIPOLE_API_URL": "http://[::1"}, ("status",), "DIPOLE_API_URL"),
        ({"DIPOLE_API_URL": "127.0.0.1:8400"}, ("rewards", "list"), "DIPOLE_API_URL"),
        ({"DIPOLE_API_URL": "ftp://127.0.0.1"}, ("files", "list"), "DIPOLE_API_URL"),
        ({"DIPOLE_API_PORT": "many"}, ("up",), "DIPOLE_API_PORT"),
        ({"DIPOLE_HOME": "{file}/home"}, ("up",), "DIPOLE_HOME"),
        ({}, ("up", "--home", "{file}"), "--home"),
        ({}, ("demo", "--out", "{file}/demo"), "{file}"),
        ({}, ("rewards", "apply", "{file}/rewards.toml"), "{file}"),
        ({}, ("jobs", "create", "--config", "{file}"), "not JSON"),
        ({}, ("files", "delete", "..", "--api", "http://127.0.0.1:1"), "no id"),
        ({}, ("jobs", "list", "--key", "a\nb"), "--key"),
    ],
)
def test_it_is_one_sentence(environment: dict[str, str], words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    """Naming the variable, option, file or address that is to be mended."""
    file = tmp_path / "file"
    file.write_text("no folder, and no JSON")
    told = {name: value.format(file=file) for name, value in environment.items()}
    done = CliRunner().invoke(app, [word.format(file=file) for word in words], env={"NO_COLOR": "1", **told})
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    said = [line for line in done.stderr.splitlines() if line != "Starting the platform …"]  # what was waited for
    assert len(said) == 1
    assert said[0].startswith("Error: ")
    assert sentence.format(file=file) in said[0]


def test_models_without_a_server_are_those_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `dipole up` would look for them."""
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine/model_index.json").write_text("{}")
    monkeypatch.delenv("DIPOLE_MODELS_DIR", raising=False)
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["models", "list", "--json", "--api", "http://127.0.0.1:1"])
    assert done.exit_code == 0
    assert '"id": "mine"' in done.stdout


def test_a_locale_without_our_characters_ends_no_command(tmp_path: Path) -> None:
    """They are escaped; a word that is no text is told as one."""
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "dipole.cli", "jobs"]
    helped = subprocess.run([*command, "show", "--help"], env=environment, capture_output=True, check=True)
    assert b"ftjob-" in helped.stdout
    wrong = [*command, "show", b"ftjob-\xff", "--api", "http://127.0.0.1:1"]
    done = subprocess.run(wrong, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")


def test_a_server_that_is_no_trainer_api_is_told_as_one() -> None:
    """A web page instead of JSON names the option to look at."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = CliRunner().invoke(app, ["jobs", "list", "--api", url])
        server.shutdown()
    assert done.exit_code == 1
    assert "no trainer API: look at --api" in done.stderr


def test_a_default_port_that_is_taken_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    """With the process that has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["up", "--home", str(tmp_path)], env={"DIPOLE_API_PORT": port})
    assert done.exit_code == 1
    assert f"DIPOLE_API_PORT: port {port} of 127.0.0.1 is taken by process {os.getpid()}" in done.stderr
