"""What the trainer's tests share: a real API server, `dipole serve api` as anybody starts it, on a free port."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from dipole.stack.ports import reserve_port


@dataclass
class Running:
    """A server's address and the environment that its other processes share."""

    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


def environment(folder: Path, port: int, **more: str) -> dict[str, str]:
    """Settings of one platform in one folder; nothing of the caller's own DIPOLE_ settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")}
    ours = {
        "HOME": str(folder),
        "API_PORT": str(port),
        "DATABASE_URL": f"sqlite:///{folder}/jobs.db",
        "ARTIFACTS_URL": str(folder / "artifacts"),
        **more,
    }
    return {**own, **{f"DIPOLE_{name}": value for name, value in ours.items()}}


@contextlib.contextmanager
def running_api(folder: Path, port: int | None = None, **more: str) -> Iterator[Running]:
    with reserve_port() if port is None else contextlib.nullcontext(port) as port:
        variables = environment(folder, port, **more)
        command = [sys.executable, "-m", "dipole.cli", "serve", "api"]
        with (folder / "api.log").open("ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield Running(f"http://127.0.0.1:{port}", variables, process)
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


@pytest.fixture(scope="session")
def api_server() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """`with api_server(folder, port) as server:` for tests that stop and start one of their own."""
    return running_api


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One API server for tests that only talk to it; it knows a reward `shapes`, where nothing answers."""
    with running_api(tmp_path_factory.mktemp("api")) as server:
        httpx.post(f"{server.url}/v1/rewards", json={"name": "shapes", "url": "http://127.0.0.1:9"}).raise_for_status()
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with tiny-sd and tiny-sdxl."""
    from dipole_trainer.generators import tiny_pipelines

    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd", "sdxl"):
        tiny_pipelines.write_pipeline(folder / f"tiny-{kind}", kind)
    return folder
