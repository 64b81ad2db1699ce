"""The real thing: `dipole rewards serve` in a process of its own, over a real socket, with a user's own reward."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from dipole import conformance
from dipole.client.rank_client import RankClient

from ...processes import serving
from ..conftest import serve_command

REWARD = """
import numpy as np
from dipole_rewards.reward import Golden, Reward, Scores


class Redness(Reward):
    name = "redness"

    def score(self, *, prompt, images, metadata):
        return Scores([float(image[..., 0].mean()) for image in images])

    def golden(self):
        return Golden(prompt="", image=np.full((2, 2, 3), 50, np.uint8), score=50.0)


class Missing(Redness):
    @classmethod
    def load(cls, device):
        raise FileNotFoundError("/weights/redness.safetensors is missing")
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dipole.cli", "rewards", "serve", *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    (folder / "my_rewards.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    environment = {"DIPOLE_REWARD_BODY_TIMEOUT_S": "1", "DIPOLE_REWARD_MAX_BODY_BYTES": "3000000"}
    reward = partial(serve_command, "my_rewards:Redness")
    with serving(reward, folder / "log", cwd=folder, env=environment) as running:
        yield running


def test_the_client_ranks_over_a_socket(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """RankClient and a service made from a file in the current folder agree on a ranking."""
    with RankClient(served[0]) as client:
        shades = [np.full((16, 16, 3), value, np.uint8) for value in (10, 200, 90)]
        ranking = client.rank("the reddest", shades, deadline_s=20)
    assert [item.rank for item in ranking.results] == [3, 1, 2]
    assert ranking.model == "Redness"


def test_it_passes_its_own_conformance_suite(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Over the socket as well, every check passes or does not apply."""
    failed = [result for result in conformance.run_checks(served[0]) if result.outcome == "failed"]
    assert failed == []


def test_an_oversized_body_gets_its_answer_over_a_socket(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """The 413 arrives although the caller is still sending, with and without a Content-Length."""
    chunks = (b" " * 50_000 for _ in range(100))
    for content in (b" " * 5_000_000, chunks):
        answer = httpx.post(
            f"{served[0]}/v1/rank", content=content, headers={"content-type": "application/json"}, trust_env=False
        )
        assert answer.status_code == 413


def test_a_slow_body_is_cut_off(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """A connection that sends its headers and then nothing gets 408 and is closed."""
    host, port = served[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer


def test_sigterm_ends_it_cleanly(served: tuple[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """The process stops by itself; its log is JSON lines without a traceback."""
    served[1].send_signal(signal.SIGTERM)
    assert served[1].wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert all(line.startswith("{") for line in log.splitlines() if line)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["my_rewards:Rednes"], "my_rewards has no 'Rednes'; it offers Redness"),
        (["my_reward:Redness"], "there is no module 'my_reward'"),
        (["my_rewards:Missing", "--port", "0"], "/weights/redness.safetensors is missing"),
        (["my_rewards:Redness", "--host", "0.0.0.0"], "DIPOLE_REWARD_KEY"),
    ],
)
def test_a_wrong_start_is_one_readable_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    """Exit code 1, the reason in words, no traceback."""
    ended = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
