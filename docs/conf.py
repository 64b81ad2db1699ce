"""How Sphinx makes the docs site of docs/. `make docs-site` builds it, offline and strictly: a warning is a failure.

The pages are the Markdown that a repository's viewer shows too. Links to files of the sources become downloads; README,
CHANGELOG and LOG are pages too. The reference of each REST API is made of its OpenAPI document.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from dipole.web.api_reference.content import STATIC_FILES, render_standalone_page

logging.getLogger("alembic").setLevel(logging.WARNING)  # a database is made for each app that is asked

ROOT = Path(__file__).resolve().parent.parent
SERVERS = {"trainer": "http://localhost:8400", "reward": "http://localhost:8401", "rating": "http://localhost:8450"}
ROOT_PAGES = {"index": "README.md", "changelog": "CHANGELOG.md", "measurements": "LOG.md"}
PAGE_NAMES = {file: f"{name}.md" for name, file in ROOT_PAGES.items()}


def describe_version() -> str:
    """The version, and the commit where git knows one: `0.1.0, commit 52a408c of 2026-11-29`."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=commit %h of %cs"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}, {commit}"


project = "Dipole"
release = describe_version()
version = release.partition(",")[0]
copyright = f"the Dipole authors. These pages document Dipole {release}."

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "html_image"]
myst_heading_anchors = 4
root_doc = "index"
highlight_language = "text"  # of a fence that names none
exclude_patterns = ["PLAN.md"]  # what is not yet

html_theme = "furo"
html_title = f"Dipole {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "../trainer/dipole_trainer/dashboard/static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1a5fa0", "color-brand-content": "#1a5fa0"},
    "dark_css_variables": {"color-brand-primary": "#84bbf2", "color-brand-content": "#84bbf2"},
}


def include_root_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put README, CHANGELOG and LOG where their pages are, and links to this version's REST references on theirs."""
    if docname in ROOT_PAGES:
        text = (ROOT / ROOT_PAGES[docname]).read_text()
        text = re.sub(r"\]\((?!https?:|mailto:|#)([^)]+)\)", _relink, text)
        content[0] = f"{text}\n{content[0]}"
    content[0] = FILE_NAMED_LINK.sub("[](", content[0])
    if docname == "rest":
        links = ", ".join(f'<a href="api/{name}.html">{title}</a>' for name, title, _ in read_documents())
        content[0] += f"\nAs of version {version}: {links}.\n"


def _relink(found: re.Match[str]) -> str:
    """A link of a file at the top of the repository as it is from docs/."""
    target = found[1]
    inner = target.removeprefix("docs/")
    return f"]({PAGE_NAMES.get(target, inner if inner != target else f'../{target}')})"


def write_api_pages(app: Sphinx, exception: Exception | None) -> None:
    """api/trainer.html and so on, beside the pages: each REST API as its server shows it at /docs."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / "api"
    folder.mkdir(exist_ok=True)
    for name, _, document in read_documents():
        page = render_standalone_page(document, example_url=SERVERS[name], release=release, home="../rest.html")
        (folder / f"{name}.html").write_text(page)
    for name, content in STATIC_FILES.items():
        (folder / name).write_bytes(content)


def read_documents() -> list[tuple[str, str, dict[str, Any]]]:
    """(name of a page, title, OpenAPI document) of each app; reading them imports the whole platform."""
    if not DOCUMENTS:
        path = str(ROOT / "scripts/write-reference")
        loader = SourceFileLoader("write_reference", path)
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[loader.name] = module
        loader.exec_module(module)
        DOCUMENTS.extend((title.split()[0].lower(), title, app.openapi()) for title, app in module.apps())
    return DOCUMENTS


FILE_NAMED_LINK = re.compile(r"\[(?:docs/)?[\w-]+\.md\]\(")  # a site names a page by its title
DOCUMENTS: list[tuple[str, str, dict[str, Any]]] = []


def setup(app: Sphinx) -> None:
    app.connect("source-read", include_root_page)
    app.connect("build-finished", write_api_pages)
