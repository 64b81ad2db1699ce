"""Certificates of endpoints: a real TLS server that asks for a client certificate, and folders that are not right."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from dipole.client import tls
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.errors import ConfigurationError

IMAGES = [np.zeros((4, 4, 3), np.uint8)]
NAMES = {"model": "go", "model_revision": "1", "recipe_version": "1"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[str]:
    """The URL of a ranking endpoint that only speaks to clients with a certificate of the authority."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"name": "go", **NAMES, "media_types": ["image/png"], "multipart": False})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            results = [{"id": "c0", "score": 0.5, "rank": 1}]
            self.answer({"id": "r", "created": 1, **NAMES, "results": results})

        def answer(self, said: object) -> None:
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            return  # a handshake that fails is what some tests want

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    http = Quiet(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    # the handshake in the connection's own thread, so that one that fails stops nobody
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join(5)


def folder(at: Path, ca: trustme.CA | None, client: trustme.LeafCert | None, *, inside: bool = False) -> Path:
    """A credential's folder `team-go`; with `inside` the key stands in client.pem."""
    credential = at / "team-go"
    credential.mkdir(parents=True)
    if ca is not None:
        ca.cert_pem.write_to_path(credential / tls.CA_FILE)
    if client is not None:
        whole = client.private_key_and_cert_chain_pem if inside else client.cert_chain_pems[0]
        whole.write_to_path(credential / tls.CLIENT_CERTIFICATE_FILE)
        if not inside:
            client.private_key_pem.write_to_path(credential / tls.CLIENT_KEY_FILE)
    return at


def score(url: str, tls_dir: Path | None, name: str | None = "team-go") -> float | None:
    with RankClient(Endpoint(url=url, tls=name), tls_dir=tls_dir) as client:
        return client.rank("p", IMAGES, deadline_s=3, retry=False).results[0].score


@pytest.mark.parametrize("inside", [False, True], ids=["key beside", "key inside"])
def test_with_certificates_the_endpoint_is_asked(
    tmp_path: Path, authority: trustme.CA, server: str, inside: bool
) -> None:
    """ca.pem is believed and client.pem shown, whether its key stands beside it or in it."""
    assert score(server, folder(tmp_path, authority, authority.issue_cert("trainer"), inside=inside)) == 0.5


def test_without_a_client_certificate_the_server_refuses(tmp_path: Path, authority: trustme.CA, server: str) -> None:
    """The CA alone makes us believe the server, and not the server us: a transport error, which may pass."""
    with pytest.raises(EndpointError) as caught:
        score(server, folder(tmp_path, authority, None))
    assert (caught.value.code, caught.value.retryable) == ("transport", True)


def test_a_certificate_of_another_authority_is_refused_by_the_server(
    tmp_path: Path, authority: trustme.CA, server: str
) -> None:
    """Any certificate is not enough."""
    with pytest.raises(EndpointError) as caught:
        score(server, folder(tmp_path, authority, trustme.CA().issue_cert("trainer")))
    assert caught.value.code == "transport"


def test_a_server_of_another_authority_is_refused_by_us(tmp_path: Path, authority: trustme.CA, server: str) -> None:
    """With another CA, with none of ours, and without a name at all: nothing is sent to whom we cannot believe."""
    client = authority.issue_cert("trainer")
    for tls_dir, name in (
        (folder(tmp_path / "other", trustme.CA(), client), "team-go"),
        (folder(tmp_path / "public", None, client), "team-go"),
        (None, None),
    ):
        with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
            score(server, tls_dir, name)


def test_names_and_authorities_are_always_verified(tmp_path: Path, authority: trustme.CA) -> None:
    """Whatever the folder holds, the certificate must be of a believed authority and for the host in the URL."""
    client = authority.issue_cert("trainer")
    for ca, own in ((authority, None), (None, client), (authority, client)):
        made = tls.ssl_context("team-go", folder(tmp_path / f"{ca is None}-{own is None}", ca, own))
        assert isinstance(made, ssl.SSLContext)
        assert (made.check_hostname, made.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert tls.ssl_context(None, tmp_path) is True


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "there is no folder .*/team-go"),
        ([], "/team-go holds neither ca.pem nor client.pem"),
        ([tls.CLIENT_KEY_FILE], "/team-go holds client.key, but no client.pem"),
        ([tls.CA_FILE, tls.CLIENT_KEY_FILE], "/team-go holds client.key, but no client.pem"),
        ([tls.CLIENT_CERTIFICATE_FILE], "client.pem holds no key, and .*/team-go/client.key is missing"),
        (["nonsense"], "ca.pem holds no certificates"),
        (["stranger"], "client.pem and client.key do not belong together"),
        (["locked"], "client.key is encrypted"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(tmp_path: Path, authority: trustme.CA, made: list[str] | None, said: str) -> None:
    """Each mistake is a sentence with the folder and the file, and no client is made without what was asked for."""
    if made is not None:
        client = authority.issue_cert("trainer")
        credential = folder(tmp_path, authority, client) / "team-go"
        for name in (tls.CA_FILE, tls.CLIENT_CERTIFICATE_FILE, tls.CLIENT_KEY_FILE):
            if made and made[0] in ("stranger", "locked"):
                continue
            if name not in made:
                (credential / name).unlink()
        if made == ["nonsense"]:
            (credential / tls.CA_FILE).write_text("hello")
        elif made == ["stranger"]:
            authority.issue_cert("other").private_key_pem.write_to_path(credential / tls.CLIENT_KEY_FILE)
        elif made == ["locked"]:
            key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
            locked = serialization.BestAvailableEncryption(b"password")
            pem = serialization.PrivateFormat.PKCS8
            (credential / tls.CLIENT_KEY_FILE).write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, locked))
    with pytest.raises(ConfigurationError, match=said):
        RankClient(Endpoint(url="https://127.0.0.1:1", tls="team-go"), tls_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="set DIPOLE_TLS_DIR"):
        RankClient(Endpoint(url="https://127.0.0.1:1", tls="team-go"))


def test_renewed_certificates_are_noticed(tmp_path: Path, authority: trustme.CA) -> None:
    """The stamp changes with a file, so that a lane makes a new client; without a name there is none."""
    tls_dir = folder(tmp_path, authority, authority.issue_cert("trainer"))
    before = tls.certificates_stamp("team-go", tls_dir)
    assert before == tls.certificates_stamp("team-go", tls_dir)
    with contextlib.suppress(FileNotFoundError):
        (tls_dir / "team-go" / tls.CLIENT_KEY_FILE).unlink()
    assert tls.certificates_stamp("team-go", tls_dir) != before
    assert tls.certificates_stamp(None, tls_dir) == ()
