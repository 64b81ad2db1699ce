"""A proxy that serves another server below a path prefix, and tells it nothing of that: nginx's `proxy_pass URL/;`."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_HEADERS = {"connection", "host", "keep-alive", "transfer-encoding", "date", "server"}
MAX_BODY_BYTES = 64 * 2**20


@contextmanager
def serve_below(upstream: str, prefix: str = "/team/reward") -> Iterator[str]:
    """The URL below which `upstream` answers; every other path of that host is 418."""
    authority = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            # as nginx's client_max_body_size
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                self.answer(413, {}, b"")
                return
            body = self.rfile.read(length)
            if not self.path.startswith(f"{prefix}/"):
                self.answer(418, {}, b"")
                return
            asked = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
            connection = http.client.HTTPConnection(authority, timeout=30)
            try:
                connection.request(self.command, self.path.removeprefix(prefix), body, asked)
                found = connection.getresponse()
                self.answer(found.status, dict(found.getheaders()), found.read())
            finally:
                connection.close()

        do_GET = do_POST = do_DELETE = do_HEAD = do_OPTIONS = do_PUT = forward

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            kept = {name.lower(): value for name, value in headers.items() if name.lower() not in HOP_HEADERS}
            for name, value in {**kept, "content-length": kept.get("content-length", str(len(body)))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{prefix}"
    server.shutdown()
    server.server_close()
    thread.join(5)
