"""Where a pending ranking is to be found: the Location of a 202, resolved on the endpoint that sent it."""

from __future__ import annotations

from urllib.parse import urljoin

import httpx


def resolve_location(location: str, base_url: str) -> str | None:
    """The URL that the Location of an answer to POST {base_url}/v1/rank means; None where it is not on that endpoint.

    It is relative to the request, as HTTP has it. Behind a proxy that adds a path prefix a server often sends the path
    that itself it sees, /v1/rankings/ID: what is not below the base's path is put there, and so nothing beside it on
    the same host is ever asked.
    """
    try:
        base, found = httpx.URL(base_url), httpx.URL(urljoin(f"{base_url}/v1/rank", location))
    except (ValueError, httpx.InvalidURL):
        return None
    if (found.scheme, found.host, found.port, found.userinfo) != (base.scheme, base.host, base.port, b""):
        return None
    prefix = base.raw_path.rstrip(b"/")
    if not found.raw_path.startswith(prefix + b"/"):
        found = found.copy_with(raw_path=prefix + found.raw_path)
    return str(found.copy_with(fragment=None))
