"""Ports of loopback that are held from the moment they are chosen until the stack that chose them has ended.

A port that was only found free can be gone before a server of ours listens on it, or while that server is started
again: any connection that anybody opens may get it as its source. So two things are held for each:

    a socket    bound and never listening, beside which our own server may listen (both say SO_REUSEADDR): the kernel
                gives the port to nobody who asks for any free one. On Linux alone: elsewhere it would keep our own
                server out
    a lock      of a file for the port, so that two stacks of one user never choose the same default, also while the
                server of one of them is just being started again; the file says whose it is
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil

from dipole.errors import Conflict

LOOPBACK = "127.0.0.1"
MAX_COMMAND_CHARS = 80


class PortTaken(Conflict):
    """A port cannot be had; the message says which and whose it is."""


@contextlib.contextmanager
def reserve_port(port: int = 0, *, owner: str = "another program") -> Iterator[int]:
    """Hold a port for a server that this process starts; 0 stands for any free one.

    `owner` is what other stacks are told of it. Raises PortTaken.
    """
    with contextlib.ExitStack() as held:
        if port:
            held.enter_context(_lock_port(port, owner))
        reserved = held.enter_context(socket.socket())
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            reserved.bind((LOOPBACK, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = f"is taken by {_describe_listener(port)}" if taken else f"cannot be used ({error.strerror})"
            raise PortTaken(f"port {port} of {LOOPBACK} {why}") from error
        found = int(reserved.getsockname()[1])
        if sys.platform != "linux":
            reserved.close()
        yield found


@contextlib.contextmanager
def _lock_port(port: int, owner: str) -> Iterator[None]:
    """Hold a port's lock. The kernel frees it when we end, however, so a file left behind means nothing."""
    path = Path(tempfile.gettempdir()) / f"dipole-{os.getuid()}-port-{port}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            whose = file.read().strip() or "another Dipole stack"
            raise PortTaken(f"port {port} of {LOOPBACK} is taken by {whose}") from error
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield


def _describe_listener(port: int) -> str:
    """Whoever listens there, as far as this user may know."""
    # macOS shows other processes' sockets to root alone; a process may be gone
    with contextlib.suppress(psutil.Error, OSError):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                command = " ".join(psutil.Process(each.pid).cmdline())
                return f"process {each.pid} ({textwrap.shorten(command, MAX_COMMAND_CHARS, placeholder=' …')})"
    return "another program"
