"""The embedded stack with the platform's real processes: ready when entered, mended after kill -9, gone when left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from dipole.errors import ConfigurationError, Conflict, InvalidInput
from dipole.stack.stack import LocalRaters, LocalReward, Stack, parse_local_rewards
from dipole.stack.supervisor import StartFailed

COLOURFULNESS = LocalReward("colourfulness", "dipole_rewards.rewards.colourfulness:Colourfulness", 8402)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), [COLOURFULNESS], worker=False) as stack:
        yield stack


def test_everything_is_ready_and_the_rewards_are_known(stack: Stack) -> None:
    """Entered, the API and the rewards answer, and jobs may name the rewards."""
    assert set(stack.processes) == {"redis", "colourfulness", "rank-worker", "api"}
    assert answers(stack.api_url)
    assert answers(stack.reward_urls["colourfulness"])
    listed = httpx.get(f"{stack.api_url}/v1/rewards", trust_env=False).json()["data"]
    assert [(each["name"], each["url"]) for each in listed] == [("colourfulness", stack.reward_urls["colourfulness"])]
    table = {row.name: row for row in stack.process_rows()}
    assert table["api"].url == stack.api_url
    assert all(row.log is not None and row.log.exists() for row in table.values())


def test_settings_of_the_caller_leave_the_stack_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own rewards stay allowed whatever DIPOLE_REWARD_HOSTS says, and models lie under its home unless told."""
    monkeypatch.setenv("DIPOLE_REWARD_HOSTS", "judge.example.org")
    told = Stack(tmp_path).environment()
    assert told["DIPOLE_REWARD_HOSTS"] == "judge.example.org,127.0.0.1"
    assert told["DIPOLE_MODELS_DIR"] == str(tmp_path / "models")
    monkeypatch.setenv("DIPOLE_MODELS_DIR", "/models")
    assert Stack(tmp_path).environment()["DIPOLE_MODELS_DIR"] == "/models"


def test_rewards_of_a_stack_are_named_on_its_command_line() -> None:
    """One of ours by its name, one's own by name and class; ports follow each other."""
    assert parse_local_rewards(["pickscore", "mine=my_module:Brightness", "people"]) == [
        LocalReward("pickscore", "pickscore", 8401),
        LocalReward("mine", "my_module:Brightness", 8402),
        LocalRaters("people", 8450),
    ]
    with pytest.raises(InvalidInput, match="clip is given twice"):
        parse_local_rewards(["clip", "clip"])
    with pytest.raises(InvalidInput, match="letters, digits"):
        parse_local_rewards(["my_module:Brightness"])


def test_a_second_stack_on_the_home_is_refused(stack: Stack) -> None:
    """The sentence names the folder and the process that holds it."""
    with pytest.raises(Conflict, match=rf"(?s){stack.home}.*process {os.getpid()}"), Stack(stack.home):
        pass


@pytest.mark.parametrize("name", ["colourfulness", "api", "rank-worker", "redis"])
def test_a_killed_process_comes_back(name: str, stack: Stack) -> None:
    """kill -9 of any process is mended under the same address."""
    before = stack.processes[name]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: stack.processes.get(name, before) != before, f"a new {name}")
    wait_for(lambda: answers(stack.api_url) and answers(stack.reward_urls["colourfulness"]), "all answering")


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the setting; nothing is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("DIPOLE_API_PORT", str(port))
        with (
            pytest.raises(ConfigurationError, match=f"DIPOLE_API_PORT: port {port} of 127.0.0.1 is taken"),
            Stack(tmp_path),
        ):
            pass


def test_stacks_that_start_at_once_have_ports_of_their_own(tmp_path: Path) -> None:
    """Each API is its own stack's, also when all of them were killed and came back at once."""
    stacks = [Stack(tmp_path / str(number), [], worker=False) for number in range(3)]
    with ThreadPoolExecutor(len(stacks)) as pool, contextlib.ExitStack() as undo:
        for started in [pool.submit(stack.__enter__) for stack in stacks]:
            undo.push(started.result())
        assert len({url for stack in stacks for url in (stack.api_url, stack.redis_url)}) == 2 * len(stacks)
        for number, stack in enumerate(stacks):
            body = {"name": f"of-{number}", "url": "http://127.0.0.1:9"}
            httpx.post(f"{stack.api_url}/v1/rewards", json=body, trust_env=False).raise_for_status()
        for stack in stacks:
            os.kill(stack.processes["api"], signal.SIGKILL)
        wait_for(lambda: all(answers(stack.api_url) for stack in stacks), "all answering")
        for number, stack in enumerate(stacks):
            listed = httpx.get(f"{stack.api_url}/v1/rewards", trust_env=False).json()["data"]
            assert [each["name"] for each in listed] == [f"of-{number}"]


def test_up_says_what_runs_where_and_leaves_nothing_when_killed(tmp_path: Path) -> None:
    """`dipole up` prints a table; kill -9 of it ends every process, and the home can be used again, until Ctrl-C.

    The next start has a reward that does not exist: it ends with the tail of that log, and leaves nothing either.
    """
    home, printed = tmp_path / "home", tmp_path / "printed"
    command = [sys.executable, "-m", "dipole.cli", "up", "--home", str(home)]
    with printed.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as up:
        wait_for(lambda: "Ready." in printed.read_text() or up.poll() is not None, "up", 200)
        assert up.poll() is None, printed.read_text()
        for name in ("shapes", "colourfulness", "people", "rank-worker", "sampler", "api", "worker", "redis"):
            assert name in printed.read_text()
        started = psutil.Process(up.pid).children(recursive=True)
        assert len(started) >= 8
        up.kill()
        up.wait(60)
        wait_for(lambda: not any(each.is_running() for each in started), "all gone")

    with printed.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as up:
        wait_for(lambda: "Ready." in printed.read_text() or up.poll() is not None, "up again", 200)
        up.send_signal(signal.SIGINT)
        assert up.wait(100) == 0, printed.read_text()
    assert printed.read_text().endswith("Ready. Ctrl-C stops everything.\nStopped.\n")

    before = set(psutil.Process().children(recursive=True))
    wrong = LocalReward("wrong", "no_such_module:Reward")
    with pytest.raises(StartFailed, match=r"(?s)wrong ended.*no_such_module"), Stack(home, [wrong], worker=False):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before
