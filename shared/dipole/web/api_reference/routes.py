"""The routes of the API reference, for any app that has an OpenAPI document.

    /docs                the page: a shell that holds nothing, so that it needs no key
    /docs/page.js, …     its module and its style sheet, which need none either
    /docs/content        what the page shows: made of the OpenAPI document, and behind the same key as that

A browser cannot send a key with a link that is followed, so the page asks for the content itself, with the key that is
typed into it where the server wants one. Nothing comes from another host, and no script or style stands in the markup.
Addresses are relative, since a proxy may put a path before ours.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from dipole.web.api_reference.content import render_content
from dipole.web.api_reference.templates import render_template
from dipole.web.asgi import Receive, Scope, Send

PAGE_PATH, CONTENT_PATH = "/docs", "/docs/content"
FILES = {
    "/docs/icon.svg": "image/svg+xml",
    "/docs/page.js": "text/javascript; charset=utf-8",
    "/docs/style.css": "text/css; charset=utf-8",
}
PAGE_PATHS = frozenset({PAGE_PATH, *FILES})
"""Paths that hold nothing of the server, and so need no key."""
HTML = "text/html; charset=utf-8"
HEADERS = {
    "cache-control": "no-cache",  # asked for again by its ETag, so that an upgrade is seen
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class StoredAnswer:
    """An ASGI app that answers GET and HEAD with the same bytes always; they are made when first asked for."""

    def __init__(self, make_body: Callable[[], bytes], media_type: str) -> None:
        self._make_body = make_body
        self._media_type = media_type
        self._made: tuple[bytes, str] | None = None  # the body and its ETag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made is None:
            made = await asyncio.to_thread(self._make_body)  # of a large document seconds, on a busy machine
            self._made = made, f'"{hashlib.sha256(made).hexdigest()[:32]}"'
        body, tag = self._made
        is_known = (b"if-none-match", tag.encode()) in scope["headers"]
        fields = {**HEADERS, "etag": tag}
        if not is_known:
            fields |= {"content-type": self._media_type, "content-length": str(len(body))}
        raw = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": 304 if is_known else 200, "headers": raw})
        is_sent = scope["method"] == "GET" and not is_known
        await send({"type": "http.response.body", "body": body if is_sent else b""})


def add_api_reference(
    app: Any, *, key_setting: str, is_keyed: bool, example_url: str, home: tuple[str, str] | None = None
) -> None:
    """Add `/docs` to a FastAPI app, over `app.openapi()`; none of it is in that document.

    `key_setting` names the setting that has the server's key, for whoever is asked for it. `example_url` is where
    examples are sent when the page does not know better. `home` is the (address, name) of the page that one comes from.
    """
    static = resources.files(__package__) / "static"

    def make_page() -> bytes:
        return render_template("page.html", title=app.title, key_setting=key_setting, home=home).encode()

    def make_content() -> bytes:
        key = key_setting if is_keyed else None
        return render_content(app.openapi(), example_url=example_url, key_setting=key).encode()

    answers = {PAGE_PATH: StoredAnswer(make_page, HTML), CONTENT_PATH: StoredAnswer(make_content, HTML)}
    for path, media_type in FILES.items():
        answers[path] = StoredAnswer((static / path.rpartition("/")[2]).read_bytes, media_type)
    for path, answer in answers.items():
        app.add_route(path, answer, methods=["GET"], include_in_schema=False)
