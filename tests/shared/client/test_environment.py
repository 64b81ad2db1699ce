"""Proxies and certificates of a user's environment, for every client that asks a server which the user named."""

from __future__ import annotations

import ssl

import pytest

from dipole.client.environment import environment_options, find_proxy
from dipole.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_proxies_are_for_the_hosts_that_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY with an IPv6 address in brackets is read, and names hosts that are asked directly."""
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "[::1],.lan")
    assert find_proxy("http://127.0.0.1:8400") is None
    assert find_proxy("http://[::1]:8400") is None
    assert find_proxy("http://api.lan:8400") is None
    assert find_proxy("https://api.example") is None
    proxy = find_proxy("http://api.example")
    assert proxy is not None
    assert str(proxy.url) == "http://proxy.example:3128"


def test_certificates_of_the_environment_are_for_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS they are not even read."""
    assert isinstance(environment_options("https://api.example")["verify"], ssl.SSLContext)
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    assert environment_options("http://api.example")["verify"] is False
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        environment_options("https://api.example")
