"""A real Chromium for tests of pages: contexts whose requests and consoles are watched, and axe-core.

axe-core lies in tests/ratings/pages/axe, with its version and licence.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, Response, sync_playwright

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NO_CHROMIUM = (
    "the tests of the pages drive Chromium, and there is none: run `make browser`, or apt-get install chromium"
)
AXE = Path(__file__).parent / "ratings/pages/axe/axe.min.js"
OURS = re.compile(r"(blob:)?http://127\.0\.0\.1:\d+/")


def find_chromium() -> str:
    """Its path. Fails, and does not skip, where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail(NO_CHROMIUM, pytrace=False)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, until the module ends: Playwright's loop must not be there for tests that run one of their own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


class WatchedBrowser:
    """Makes pages, and keeps what they asked for, got, and wrote to the console."""

    expected_console = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")
    """What a browser itself writes about answers that a test expects."""
    timeout_ms = 60_000

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.asked: list[str] = []
        self.responses: list[Response] = []
        self.console: list[str] = []

    def context(self, **options: Any) -> BrowserContext:
        chosen: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        context = self.browser.new_context(**chosen)
        context.set_default_timeout(self.timeout_ms)
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("response", lambda response: self.responses.append(response))
        context.on("console", lambda message: self._keep(message.type, message.text))
        context.on("weberror", lambda error: self._keep("error", str(error.error)))
        self.contexts.append(context)
        return context

    def page(self, url: str, **options: Any) -> Page:
        """A new page in a context of its own."""
        page = self.context(**options).new_page()
        page.goto(url)
        return page

    def _keep(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not self.expected_console.match(text):
            self.console.append(f"{kind}: {text}")


Watched = TypeVar("Watched", bound=WatchedBrowser)


@contextmanager
def closing(watched: Watched) -> Iterator[Watched]:
    """Whatever a test does, no page asks another host, and none writes an error to the console."""
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.console == []
    assert [url for url in watched.asked if not OURS.match(url)] == []


def run_axe(page: Page, what: str) -> None:
    """axe-core finds nothing, in light and in dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if not page.evaluate("() => Boolean(window.axe)"):
            page.evaluate(AXE.read_text())
        try:
            found = page.evaluate("async () => (await axe.run()).violations")
        except Error as error:
            raise AssertionError(f"axe did not run on {what}") from error
        told = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
        assert told == [], f"{what}, {scheme}: {told}"
