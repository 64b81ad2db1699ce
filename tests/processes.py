"""Servers of other processes, as tests need them: on a free port, ready, and gone in the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from dipole.stack.ports import reserve_port


@contextmanager
def serving(
    command: Callable[[int], Sequence[str]],
    log: Path,
    *,
    ready: str = "/readyz",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL and the process of `command(port)`, once GET of `ready` is 200; what it says is in `log`."""
    with reserve_port() as port:
        url = f"http://127.0.0.1:{port}"
        process = start(command(port), log, cwd=cwd, env=env)
        try:
            _until_ready(url + ready, process, log)
            yield url, process
        finally:
            process.kill()
            process.wait()


def start(
    command: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=out, stderr=out)


def run_dipole(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command of ours to its end, with `env` beside what is set here."""
    command = [sys.executable, "-m", "dipole.cli", *arguments]
    variables = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def exchange(url: str, *pieces: bytes, timeout_s: float = 30) -> bytes:
    """What a server answers to these bytes until it closes; less, where it cuts the connection off."""
    address, answer = urlsplit(url), b""
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80), timeout=timeout_s) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer
