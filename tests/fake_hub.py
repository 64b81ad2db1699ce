"""A hub on loopback, as far as fetching weights asks for one; and a plain file server, as ModelScope, GitHub, PyPI are.

Files of 1 kB and more are kept as the real hub keeps large ones: their checksum is SHA-256, and their address leads to
another host, `localhost`, which must not be shown a token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dipole.downloads.table import BUILT_IN_TABLE

from . import processes

LARGE_BYTES = 1000
COMMIT = "c" * 40


@dataclass
class Asked:
    host: str
    path: str
    range: str | None
    token: str | None


@dataclass
class FakeHub:
    """`repositories` are folders by name, `files` lie at /files/NAME. The other fields make it misbehave."""

    url: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    break_at: dict[str, list[int]] = field(default_factory=dict)  # of a file's name: bytes after which answers end
    damaged: set[str] = field(default_factory=set)  # names of files whose bytes arrive otherwise
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # of a repository: status and X-Error-Code
    ignores_ranges: bool = False

    def fetched(self) -> list[str]:
        """Names of files whose bytes were asked for, each time."""
        return [
            unquote(each.path).rpartition("/")[2] for each in self.asked if each.path.startswith(("/cdn", "/files"))
        ]

    def ranges(self, name: str) -> list[str | None]:
        return [each.range for each in self.asked if each.path.startswith(("/cdn", "/files")) and name in each.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        host = self.headers["Host"].partition(":")[0]
        self.hub.asked.append(Asked(host, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._send_repository(match[1], match[2] or COMMIT)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._redirect(f"http://localhost:{self.server.server_address[1]}/cdn/{match[1]}/{match[2]}")
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self._send_file(self.hub.repositories[match[1]] / unquote(match[2]))
        if path.startswith("/files/") and unquote(path[7:]) in self.hub.files:
            return self._send_file(self.hub.files[unquote(path[7:])])
        self._send(404, b"nothing here")

    def _send_repository(self, name: str, revision: str) -> None:
        if name in self.hub.refused or name not in self.hub.repositories:
            status, code = self.hub.refused.get(name, (404, "RepoNotFound"))
            return self._send(status, b"{}", {"X-Error-Code": code})
        folder = self.hub.repositories[name]
        entries = [describe_file(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT
        self._send(200, json.dumps({"id": name, "sha": commit, "siblings": entries}).encode())

    def _redirect(self, target: str) -> None:
        self._send(302, b"", {"Location": target})

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        if path.name in self.hub.damaged:
            data = bytes(len(data))
        start = 0
        if (asked := self.headers.get("Range")) and not self.hub.ignores_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        breaks = self.hub.break_at.get(path.name, [])
        if not breaks:
            self.wfile.write(data[start:])
            return
        self.wfile.write(data[start : max(breaks.pop(0), start)])
        self.wfile.flush()
        self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


def describe_file(path: Path, folder: Path) -> dict[str, Any]:
    """As the hub lists a file."""
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, Any] = {"rfilename": path.relative_to(folder).as_posix(), "size": len(data), "blobId": blob}
    if len(data) >= LARGE_BYTES:
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


@contextlib.contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_table(hub: FakeHub, path: Path, *, text_sha256: str = "0" * 64) -> Path:
    """The built-in table for a hub with other bytes: without known checksums, every address one of `hub`'s /files."""
    table = re.sub(r"(?m)^sha256 = \{.*$", "", BUILT_IN_TABLE.read_text())
    table = re.sub(r'(?m)^sha256 = "\w{64}"', f'sha256 = "{text_sha256}"', table)
    table = table.replace("[sources.hpsv3-package]", '[sources.hpsv3-package]\nurl = ""')
    path.write_text(re.sub(r'(?m)^url = ".*"', f'url = "{hub.url}/files/{{file}}"', table))
    return path


def run_dipole(hub: FakeHub, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, in a folder of theirs, with this hub as their mirror and nothing in its cache."""
    names = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cwd / "hf"),
        "DIPOLE_API_URL": "http://127.0.0.1:1",
        "NO_COLOR": "1",
    }
    return processes.run_dipole(*arguments, cwd=cwd, env={**names, **environment})
