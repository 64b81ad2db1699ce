"""The real thing: `dipole rewards serve` in a process of its own, over a real socket, with a user's own reward."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from dipole import conformance
from dipole.client.rank_client import RankClient
from dipole.stack import container_probe

from ...processes import exchange, serving
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
    environment = {
        "DIPOLE_REWARD_BODY_TIMEOUT_S": "1",
        "DIPOLE_REWARD_MAX_BODY_BYTES": "3000000",
        "DIPOLE_REWARD_HELD_BODY_BYTES": "5000000",
    }
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
            b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer


def test_a_head_without_end_is_refused(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """A server as users start it: 400 past its bound, whatever one connection sends, and others are answered."""
    assert exchange(served[0], b"GET / HTTP/1.1\r\nx: ", *[b"a" * 65536] * 16)[:12] in (b"HTTP/1.1 400", b"")
    assert httpx.get(f"{served[0]}/livez", trust_env=False).status_code == 200


def test_bodies_past_what_is_held_together_get_503(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Of 20 bodies of 2 MB, two are waited for; the others are told when to come back, before they have sent any."""
    host, port = served[0].removeprefix("http://").split(":")
    head = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"content-length: 2000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(20)]
        answers = []
        for connection in held:
            connection.sendall(head)
        for connection in held:
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            answers.append(answer)
    refused = [each for each in answers if each.startswith(b"HTTP/1.1 503")]
    assert len(refused) == 18
    assert all(b"\r\nretry-after: 2\r\n" in each.lower() for each in refused)
    # the two whose bodies never came
    assert sum(each.startswith(b"HTTP/1.1 408") for each in answers) == 2


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_web_pages_are_refused(served: tuple[str, subprocess.Popen[bytes]], headers: dict[str, str]) -> None:
    """A multipart POST, which pages may send without asking, and what DNS rebinding makes of a request."""
    answer = httpx.post(f"{served[0]}/v1/rank", files={"request": b"{}"}, headers=headers, trust_env=False)
    assert answer.status_code == 403
    assert httpx.get(f"{served[0]}/metrics", headers=headers, trust_env=False).status_code == 403


def test_unknown_keys_are_counted_and_not_collected(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """3 MB of them, 700 MB as errors, leave the server small, on both ways to send JSON."""
    body = ("{" + ",".join(f'"{n:x}":1' for n in range(250_000)) + "}").encode()
    process = psutil.Process(served[1].pid)
    before = process.memory_info().rss
    for sent in (
        {"content": body, "headers": {"content-type": "application/json"}},
        {"files": {"request": ("request", body)}},
    ):
        answer = httpx.post(f"{served[0]}/v1/rank", trust_env=False, timeout=60, **sent)  # type: ignore[arg-type]
        assert answer.status_code == 413
        assert "65536 keys" in answer.json()["detail"]
    assert process.memory_info().rss - before < 64 * 2**20


def test_the_probe_of_containers_asks_it(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Exit code 0 while /readyz is 200, and 1 for another answer, or where nothing listens."""
    port = served[0].rpartition(":")[2]
    for where, path, code in ((port, "/readyz", 0), (port, "/nope", 1), ("1", "/readyz", 1)):
        probe = [sys.executable, "-I", "-S", container_probe.__file__, "http", where, path]
        assert subprocess.run(probe, timeout=60, check=False).returncode == code


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
        (["redness"], "must be one of aesthetic, clip, colourfulness, geneval"),
        (["pickscore", "--dtype", "fp8", "--port", "0"], "DIPOLE_REWARD_DTYPE: Input should be 'bf16' or 'fp32'"),
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


def test_a_port_in_use_is_a_sentence_before_anything_is_loaded(folder: Path) -> None:
    """With the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = command("my_rewards:Missing", "--port", str(port))
        ended = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"Error: port {port} of 127.0.0.1 is taken by another program" in ended.stderr
    assert "--port or DIPOLE_REWARD_PORT" in ended.stderr
    assert "redness.safetensors" not in ended.stderr


@pytest.mark.parametrize(("missing", "extra"), [("torch", "pickscore"), ("fastapi", "pickscore")])
def test_a_missing_extra_is_a_sentence_with_the_command_that_brings_it(missing: str, extra: str, folder: Path) -> None:
    """Dipole is on no package index: it is installed from its repository."""
    program = f"import sys; sys.modules[{missing!r}] = None; from dipole.cli import app; app()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "rewards", "serve", "pickscore", "--port", "0"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert missing in sentence
    assert f"`pip install -c constraints.txt '.[{extra}]'` in a clone of Dipole's repository" in sentence


def test_a_published_reward_looks_where_prepare_puts_its_weights(folder: Path, tmp_path: Path) -> None:
    """By its short name, and without a folder named, with the command that brings what is missing there."""
    for given, named in (([], tmp_path / "weights/clip"), (["--weights", "elsewhere"], Path("elsewhere"))):
        environment = {**os.environ, "DIPOLE_WEIGHTS_DIR": str(tmp_path / "weights"), "HF_HOME": str(tmp_path)}
        ended = subprocess.run(
            command("clip", "--port", "0", *given),
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert f"{named / 'model.safetensors'} is missing" in ended.stderr.splitlines()[-1]
        assert f"`dipole rewards prepare clip --to {named}`" in ended.stderr.splitlines()[-1]
