"""The API over HTTPS, and Redis over TLS, with a certificate that scripts/write-tls made, as docs/tls.md has it."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

from dipole.errors import ConfigurationError
from dipole.stack import container_probe
from dipole.stack.ports import reserve_port
from dipole.web.http_server import tls_options

from ...browser import FLAGS, find_chromium
from ...processes import run_dipole

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ("DIPOLE_API_TLS_CERT", "DIPOLE_API_TLS_KEY")
ADMIN_KEY = "an-admin-key-of-some-length"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what servers read."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([ROOT / "scripts/write-tls", "api.example.com", "192.0.2.7"], cwd=folder, check=True, timeout=60)
    return folder / "tls/served"


def test_the_api_speaks_https_to_whoever_trusts_its_authority(
    served: Path,
    tmp_path: Path,
    redis_url: str,
    tls_proxy: Callable[..., AbstractContextManager[int]],
) -> None:
    """The command line with SSL_CERT_FILE, a container's probe and the dashboard in a browser reach it; whoever does
    not know the authority, or speaks HTTP, does not. Its Redis is reached over TLS too, by the same authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served / "tls.crt", served / "tls.key")
    plain_port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with tls_proxy(context, plain_port) as redis_port, reserve_port() as port:
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")},
            "DIPOLE_HOME": str(tmp_path),
            "DIPOLE_API_PORT": str(port),
            "DIPOLE_API_KEY": ADMIN_KEY,
            "DIPOLE_API_TLS_CERT": str(served / "tls.crt"),
            "DIPOLE_API_TLS_KEY": str(served / "tls.key"),
            "DIPOLE_API_RATE_LIMIT": "1000/minute",
            "DIPOLE_REDIS_URL": f"rediss://127.0.0.1:{redis_port}/0?ssl_ca_certs={served / 'ca.crt'}",
        }
        command = [sys.executable, "-m", "dipole.cli", "serve", "api"]
        with (tmp_path / "api.log").open("wb") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            probe = [sys.executable, "-I", "-S", container_probe.__file__, "https", str(port), "/readyz"]
            while subprocess.run(probe, timeout=60).returncode:
                assert process.poll() is None, (tmp_path / "api.log").read_text()
            url = f"https://127.0.0.1:{port}"
            trusting = {"SSL_CERT_FILE": str(served / "ca.crt"), "DIPOLE_API_KEY": ADMIN_KEY}
            done = run_dipole("status", "--api", url, "--json", env=trusting)
            assert json.loads(done.stdout)["api"] == url, done.stderr
            stranger = run_dipole("status", "--api", url, env={"DIPOLE_API_KEY": ADMIN_KEY})
            assert stranger.returncode == 1
            assert "certificate" in stranger.stderr.lower()
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False)
            _open_dashboard(url)
        finally:
            process.terminate()
            process.wait(30)
    assert "rate_limit_not_counted" not in (tmp_path / "api.log").read_text(), "requests were counted in Redis"


def _open_dashboard(url: str) -> None:
    """In a browser that takes this certificate: the page asks for the key, and shows that there are no jobs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.goto(url)
        page.fill("#key", ADMIN_KEY)
        with page.expect_response(f"{url}/v1/fine_tuning/jobs*") as answered:
            page.press("#key", "Enter")
        assert answered.value.status == 200
        browser.close()


def test_the_files_are_for_servers_and_the_authority_for_nobody(served: Path) -> None:
    """Nobody else enters the folder, the authority's key lies elsewhere, and the certificate has every name."""
    assert served.parent.stat().st_mode & 0o077 == 0
    assert {path.name for path in served.iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    assert stat.S_IMODE((served.parent / "ca.key").stat().st_mode) == 0o600
    shown = ssl._ssl._test_decode_cert(str(served / "tls.crt"))  # type: ignore[attr-defined]
    assert ("DNS", "api.example.com") in shown["subjectAltName"]
    assert ("IP Address", "192.0.2.7") in shown["subjectAltName"]
    assert {"api", "redis", "localhost"} <= {name for kind, name in shown["subjectAltName"] if kind == "DNS"}


def test_a_certificate_that_is_none_is_a_sentence(served: Path, tmp_path: Path) -> None:
    """A file that is missing, another's key, one without the other: each names the settings."""
    (tmp_path / "wrong.key").write_text("no key")
    for certificate, key in (
        (served / "tls.crt", None),
        (None, served / "tls.key"),
        (served / "tls.crt", tmp_path / "none.key"),
        (served / "tls.crt", tmp_path / "wrong.key"),
        (served / "ca.crt", served / "tls.key"),
    ):
        with pytest.raises(ConfigurationError, match="DIPOLE_API_TLS_CERT"):
            tls_options(certificate, key, SETTINGS)
    assert tls_options(None, None, SETTINGS) == {}
