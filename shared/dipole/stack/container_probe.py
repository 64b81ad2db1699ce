"""Whether a container's process is healthy: `python -I -S container_probe.py http 8400 /readyz`, `… file worker 120`.

A probe runs every few seconds, also on a machine whose cores are all busy: it is a file by itself that imports nothing
of ours and no site packages, and images have it as /opt/container_probe.py. Exit code 0 is healthy.

`file NAME SECONDS`: the process touched $DIPOLE_HOME/NAME-HOST.health within so many seconds.
`http PORT PATH`: the server answers 200.
"""

import os
import sys
import time

TIMEOUT_S = 4


def is_fresh(name: str, seconds: float) -> bool:
    try:
        touched = os.stat(f"{os.environ['DIPOLE_HOME']}/{name}-{os.uname().nodename}.health").st_mtime
    except FileNotFoundError:
        return False
    return time.time() - touched < seconds


def answers(port: int, path: str) -> bool:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(32).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    kind, subject, argument = sys.argv[1:]
    healthy = is_fresh(subject, float(argument)) if kind == "file" else answers(int(subject), argument)
    sys.exit(not healthy)
