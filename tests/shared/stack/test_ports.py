"""Ports that are held: for our own server, against everybody else, from the choice to the end."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from dipole.stack.ports import LOOPBACK, PortTaken, reserve_port

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel holds ports on Linux alone")


def listen(port: int) -> socket.socket:
    """As uvicorn and Redis do."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((LOOPBACK, port))
    server.listen()
    return server


def test_our_server_listens_on_a_reserved_port_and_again_after_it_died() -> None:
    """The reservation stays beside the server, and outlives it."""
    with reserve_port() as port:
        for _ in range(2):
            with listen(port), socket.create_connection((LOOPBACK, port), timeout=5):
                pass


@linux_only
def test_nobody_else_gets_a_reserved_port() -> None:
    """Also while no server of ours listens there: the kernel refuses it as it does one in use."""
    with reserve_port() as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((LOOPBACK, port))


def test_of_several_that_ask_at_once_for_one_port_one_gets_it() -> None:
    """The others are told whose it is, though nothing listens there yet; afterwards it is free again."""
    with reserve_port() as port:
        pass
    start, told = threading.Barrier(8), []

    def ask(held: ExitStack) -> None:
        start.wait()
        try:
            held.enter_context(reserve_port(port, owner="the stack in /here (process 7)"))
        except PortTaken as error:
            told.append(str(error))

    with ExitStack() as held:
        threads = [threading.Thread(target=ask, args=(held,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # one that asks before the first has written whose it is hears of another stack
        assert len(told) == 7
        assert all(each.startswith(f"port {port} of 127.0.0.1 is taken by") for each in told)
        with pytest.raises(PortTaken, match=r"is taken by the stack in /here \(process 7\)"):
            held.enter_context(reserve_port(port))
    with reserve_port(port) as again:
        assert again == port


@linux_only
def test_a_port_of_another_program_is_told_with_its_process(tmp_path: Path) -> None:
    """Its number and command are there to be found and ended."""
    code = (
        "import socket, time\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        try:
            with (
                pytest.raises(PortTaken, match=rf"port {port} of .* taken by process {other.pid} \("),
                reserve_port(port),
            ):
                pass
        finally:
            other.kill()


def test_a_lock_file_is_no_way_to_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that somebody put in the folder of temporary files is not followed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with reserve_port() as port:
        pass
    with reserve_port(port):
        (lock,) = tmp_path.iterdir()
    lock.unlink()
    target = tmp_path / "precious"
    target.write_text("precious")
    lock.symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic link|Too many levels"), reserve_port(port):
        pass
    assert target.read_text() == "precious"
