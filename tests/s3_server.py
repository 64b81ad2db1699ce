"""An S3 server, moto's, over real HTTP: it can be slow, hang, be away, be full and refuse what is asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
BUCKET = "artifacts"
FULL = (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold.")
WRITES = re.compile(r"^(PUT|POST) /[^/]+/.")  # of objects
LETTERS = {400: "400 Bad Request", 403: "403 Forbidden", 507: "507 Insufficient Storage"}


class S3Server:
    """One that has the bucket `artifacts`. What it is to do badly is set on it while it runs."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app: Wsgi = DomainDispatcherApplication(create_backend_app)
        self.delay_s = 0.0
        self.full: tuple[int, str, str] | None = None  # status, code and message of what writes are answered
        self.refused = WRITES  # which requests are answered so while it is full
        self.requests: list[str] = []  # methods and paths
        self.most_at_once = 0  # requests that it was answering
        self._open = 0
        self._counting = threading.Lock()
        self._hung = threading.Event()
        self._hung.set()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, after stop() where it listened before."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_: Any) -> None: ...

        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=Quiet)
        self._server.daemon_threads = True
        self._port = self._server.port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Whoever connects is refused."""
        self._hung.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes requests and answers none."""
        self._hung.clear()
        try:
            yield
        finally:
            self._hung.set()

    def _answer(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        with self._counting:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            return self._answer_when_it_may(request, environ, respond)
        finally:
            with self._counting:
                self._open -= 1

    def _answer_when_it_may(
        self, request: str, environ: dict[str, Any], respond: Callable[..., Any]
    ) -> Iterable[bytes]:
        self._hung.wait()
        time.sleep(self.delay_s)
        if self.full and self.refused.search(f"{request}?{environ['QUERY_STRING']}"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code, message = self.full
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            respond(LETTERS[status], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        return self._app(environ, respond)


@contextmanager
def running_s3(patch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, which `s3://artifacts/...` means to this process and what it starts."""
    server = S3Server()
    environment = {"ENDPOINT_URL_S3": server.url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**environment, "DEFAULT_REGION": "us-east-1"}.items():
        patch.setenv(f"AWS_{name}", value)
    patch.setenv("NO_PROXY", "127.0.0.1")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    patch.setattr(type(filesystem), "retries", 2)  # of each request, and not five, with seconds between them
    filesystem.mkdir(BUCKET)
    type(filesystem).clear_instance_cache()  # they would know the server of an earlier test
    try:
        yield server
    finally:
        server.full = None
        type(filesystem).clear_instance_cache()
        server.stop()
        _forget_objects()


def _forget_objects() -> None:
    """moto keeps them in this process, whichever server was asked."""
    from moto.core.base_backend import BackendDict
    from moto.s3.models import s3_backends

    assert isinstance(s3_backends, BackendDict)
    for account in list(s3_backends.values()):
        for backend in list(account.values()):
            backend.reset()
