"""Whether a container's process is healthy: `python -I -S container_probe.py http 8400 /readyz`, `… file worker 120`.

A probe runs every few seconds, also on a machine whose cores are all busy: it is a file by itself that imports nothing
of ours and no site packages, and images have it as /opt/container_probe.py. Exit code 0 is healthy.

`file NAME SECONDS`: the process touched $DIPOLE_HOME/NAME-HOST.health within so many seconds.
`http PORT PATH`: the server answers 200; `https PORT PATH` likewise, whatever certificate it shows to its own host.
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


def answers(port: int, path: str, *, tls: bool) -> bool:
    import socket

    try:
        connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        if tls:
            import ssl

            # loopback's server is the one that is meant: its certificate need not name it
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        with connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(32).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    kind, subject, argument = sys.argv[1:]
    if kind == "file":
        sys.exit(not is_fresh(subject, float(argument)))
    sys.exit(not answers(int(subject), argument, tls=kind == "https"))
