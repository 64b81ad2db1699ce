"""The dashboard's routes: an HTML shell a page, and the static files that it loads.

    /                          jobs                  /jobs/{id}            a job: curves, events, config, checkpoints
    /compare                   jobs over each other  /endpoints            rewards, and how they answer
    /new                       a form to start one   /jobs/{id}/gallery    its samples, step by step
    /static/{name}             modules, styles       /jobs/{id}/groups     what it is taught: candidates in their orders

A page holds no data: its module asks REST for it, with the caller's key where there is one. So pages and static files
need no key themselves. All of it is read once, when the API starts, and served from memory; nothing is built.
Addresses are relative, since a proxy may put a path before ours.
"""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from dipole.web.api_reference.routes import PAGE_PATHS as REFERENCE_PATHS

# objects of images that were fetched with a key are blob: addresses
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "cache-control": "no-cache",  # asked for again by its ETag, so that an upgrade is seen
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
STATIC_PREFIX = "/static/"
SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · Dipole</title>
<link rel="icon" href="{root}static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{root}static/vendor/uplot.css">
<link rel="stylesheet" href="{root}static/dashboard.css">
<script type="module" src="{root}static/{module}"></script>
</head>
<body>
<a class="skip" href="#main">Skip to content</a>
<header class="bar">
<a class="brand" href="{home}"><img src="{root}static/icon.svg" alt="" width="22" height="22">Dipole</a>
<nav aria-label="Pages">{links}<a href="{root}docs">API</a></nav>
<span id="connection" role="status"></span>
</header>
<main id="main" tabindex="-1">
<noscript>This page shows what the REST API answers, and needs JavaScript for it.</noscript>
<p class="loading">Loading …</p>
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Page:
    """A page of the dashboard. `link` is its name in the navigation; None where one gets there by another page."""

    path: str
    module: str
    title: str
    link: str | None = None

    @property
    def root(self) -> str:
        """The way from the page back to `/`, as a browser resolves it."""
        return "../" * (self.path.count("/") - 1)


PAGES = (
    Page("/", "jobs.js", "Jobs", link="Jobs"),
    Page("/new", "new.js", "New job", link="New job"),
    Page("/compare", "compare.js", "Compare", link="Compare"),
    Page("/endpoints", "endpoints.js", "Endpoints", link="Endpoints"),
    Page("/jobs/{job_id}", "job.js", "Job"),
    Page("/jobs/{job_id}/gallery", "gallery.js", "Gallery"),
    Page("/jobs/{job_id}/groups", "groups.js", "Groups"),
)


def create_router() -> APIRouter:
    """The routes, over files that are read now."""
    router = APIRouter(include_in_schema=False)
    static = {f"{STATIC_PREFIX}{name}": content for name, content in _read_static_files()}
    for page in PAGES:
        _add_document(router, page.path, render_page(page).encode(), "text/html; charset=utf-8")

    @router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
    async def serve_static_file(request: Request, name: str) -> Response:
        path = f"{STATIC_PREFIX}{name}"
        if path not in static:
            raise HTTPException(404, "there is no such file")
        return _answer(request, static[path], MEDIA_TYPES["." + name.rpartition(".")[2]])

    return router


def is_page_path(path: str) -> bool:
    """Whether a request's path is of a page or its files, which hold no data and so need no key."""
    is_file = path in REFERENCE_PATHS or path.startswith(STATIC_PREFIX)
    return path == "/" or is_file or any(_matches(page.path, path) for page in PAGES)


def render_page(page: Page) -> str:
    links = [
        f'<a href="{page.root + each.path[1:] or "./"}"{_current(each is page)}>{html.escape(each.link)}</a>'
        for each in PAGES
        if each.link
    ]
    return SHELL.format(
        title=page.title, root=page.root, home=page.root or "./", module=page.module, links="".join(links)
    )


def _current(is_current: bool) -> str:
    return ' aria-current="page"' if is_current else ""


def _matches(template: str, path: str) -> bool:
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        bool(part) if name.startswith("{") else name == part for name, part in zip(wanted, given, strict=True)
    )


def _add_document(router: APIRouter, path: str, content: bytes, media_type: str) -> None:
    async def serve_page(request: Request) -> Response:
        return _answer(request, content, media_type)

    router.add_api_route(path, serve_page, methods=["GET", "HEAD"], name=f"page {path}")


@cache
def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    tag = _etag(content)
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _read_static_files() -> list[tuple[str, bytes]]:
    """(name below static/, content) of every file that a browser may have."""
    return list(_walk(resources.files(__package__) / "static", ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for each in sorted(folder.iterdir(), key=lambda one: one.name):
        if each.is_dir():
            found += _walk(each, f"{prefix}{each.name}/")
        elif "." + each.name.rpartition(".")[2] in MEDIA_TYPES:
            found.append((f"{prefix}{each.name}", each.read_bytes()))
    return found
