"""The docs site as `make docs-site` builds it: strictly, offline, and every link of every page leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import Browser, expect

from ..browser import PHONE, WatchedBrowser, closing
from ..browser import browser as browser
from ..processes import serving
from ..scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that was built with a network where nothing answers."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, str(ROOT / "scripts/build-docs"), str(out)]
    done = subprocess.run(command, env=os.environ | NO_NETWORK, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def build_docs() -> ModuleType:
    """scripts/build-docs as a module."""
    return load_script("build-docs")


@contextmanager
def serving_files(folder: Path, log: Path) -> Iterator[str]:
    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]

    with serving(command, log, ready="/index.html") as (url, _):
        yield url


def test_a_reader_finds_a_setting_an_api_and_the_version(site: Path, browser: Browser, tmp_path: Path) -> None:
    """By the offline search and by the navigation, and no page loads anything from elsewhere."""
    with serving_files(site, tmp_path / "log") as url, closing(WatchedBrowser(browser)) as visitors:
        page = visitors.page(url)
        expect(page.get_by_text("These pages document Dipole 0.1.0")).to_be_visible()
        page.get_by_placeholder("Search").fill("DIPOLE_REWARD_BATCH_WAIT_MS")
        page.keyboard.press("Enter")
        page.locator("#search-results").get_by_role("link", name="Settings").first.click()
        expect(page.get_by_role("cell", name="DIPOLE_REWARD_BATCH_WAIT_MS")).to_be_visible(timeout=60_000)
        page.get_by_role("link", name="REST APIs").click()
        page.get_by_role("link", name="Rating service", exact=True).click()
        expect(page.get_by_role("heading", name="Dipole ratings", exact=True)).to_be_visible(timeout=60_000)
        phone = visitors.page(f"{url}/training.html", **PHONE)
        assert phone.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_broken_links_and_foreign_parts_are_found(build_docs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="#here">4</a><a href="https://example.org/">5</a><script src="https://cdn.example/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="none.png">')
    assert build_docs.find_faults(tmp_path) == [
        "a.html loads https://cdn.example/x.js from another host",
        "a.html links to b.html#gone, and that page has no such heading",
        "a.html links to c.html, and there is no such file",
        "b.html links to none.png, and there is no such file",
    ]
