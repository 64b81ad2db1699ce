"""What of a user's environment decides how a server is reached: proxies and certificates, told as sentences when wrong.

    httpx.Client(base_url=url, **environment_options(url))

httpx reads the same variables by itself, but for hosts that it is never asked for, and raises on a NO_PROXY that other
programs understand (`[::1]`).
"""

from __future__ import annotations

import importlib.util
import ssl
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import httpx

from dipole.errors import ConfigurationError
from dipole.web.auth import is_loopback

PROXY_VARIABLES = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"


def environment_options(url: str) -> dict[str, Any]:
    """httpx's options for a client of this URL's host alone. Raises ConfigurationError that names the variables."""
    secure = urlsplit(url).scheme.lower() == "https"
    return {"proxy": find_proxy(url), "verify": _ssl_context() if secure else False, "trust_env": False}


def find_proxy(url: str) -> httpx.Proxy | None:
    """The environment's proxy for this URL; a proxy's loopback is another machine's, so for ours there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(parts.scheme.lower()) or proxies.get("all")
    if not named:
        return None
    try:
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigurationError(
            f"the environment's proxy for {host} is no URL of one: mend or unset it ({PROXY_VARIABLES}), or name "
            f"{host} in NO_PROXY"
        ) from error
    if proxy.url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigurationError(
            f"the environment's proxy for {host} is a SOCKS proxy ({PROXY_VARIABLES}), which needs a package that is "
            f"not installed: pip install 'httpx[socks]', or name {host} in NO_PROXY"
        )
    return proxy


def _ssl_context() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context(trust_env=True)
    except OSError as error:  # an SSLError is one
        raise ConfigurationError(
            f"SSL_CERT_FILE or SSL_CERT_DIR names no certificates that can be read ({error.strerror or error}): mend "
            "or unset it"
        ) from error
