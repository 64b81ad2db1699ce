"""A port that nobody has a reason to visit: whoever fetches the URL of an image, or calls back without a signature."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

NOT_FOUND_RESPONSE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FetchTrap:
    """Listens where the endpoint can reach it, as far as one can tell; `visits` are the requests' first bytes."""

    def __init__(self, host: str, port: int) -> None:
        self.visits: list[bytes] = []
        try:
            self._socket = _open_listener(_route_address(host, port))
        except OSError:
            # as a link-local address, which needs more than its digits
            self._socket = _open_listener("127.0.0.1")
        self._socket.settimeout(0.1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._record_visits, name="trap", daemon=True)

    @property
    def url(self) -> str:
        address, port = self._socket.getsockname()[:2]
        return f"http://{f'[{address}]' if ':' in address else address}:{port}/a.png"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    def _record_visits(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                visitor, _ = self._socket.accept()
                with visitor, contextlib.suppress(OSError):
                    visitor.settimeout(1.0)
                    self.visits.append(visitor.recv(65536))
                    visitor.sendall(NOT_FOUND_RESPONSE)


def _open_listener(address: str) -> socket.socket:
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _route_address(host: str, port: int) -> str:
    """This machine's address on the way to `host`; nothing is sent to find it."""
    with contextlib.suppress(OSError):
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    return "127.0.0.1"
