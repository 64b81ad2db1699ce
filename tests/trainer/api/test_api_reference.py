"""The API reference at /docs in a real Chromium: with a key and without, in light and dark, by link and by filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from ...browser import PHONE, WatchedBrowser, closing, run_axe
from ...browser import browser as browser

KEY = "an-admin-key-of-some-length"
PATIENCE_MS = 60_000  # the document is made when it is first asked for


@pytest.fixture
def visitors(browser: Browser) -> Iterator[WatchedBrowser]:
    with closing(WatchedBrowser(browser)) as visitors:
        yield visitors


def test_the_dashboard_leads_to_the_reference_and_back(visitors: WatchedBrowser, api: Any) -> None:
    page = visitors.page(api.url)
    page.get_by_role("link", name="API", exact=True).click()
    expect(page.get_by_role("heading", name="Dipole trainer", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    run_axe(page, "the API reference")
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible(timeout=PATIENCE_MS)


def test_a_link_to_a_schema_shows_it_and_the_filter_finds_operations(visitors: WatchedBrowser, api: Any) -> None:
    page = visitors.page(f"{api.url}/docs#schema-JobRequest", **PHONE)
    schema = page.locator("#schema-JobRequest")
    expect(schema).to_be_in_viewport(timeout=PATIENCE_MS)
    expect(schema).to_contain_text("Number of updates; if absent")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.get_by_label("Filter").fill("checkpoint_id")
    expect(page.locator("article.operation:visible")).to_have_count(1)
    expect(page.locator("article.operation:visible")).to_contain_text("Id of the checkpoint.")
    page.get_by_label("Filter").fill("")
    example = page.locator("#create_job_v1_fine_tuning_jobs_post .example")
    expect(example).to_contain_text(f"curl -s {api.url}/v1/fine_tuning/jobs ")


def test_a_server_with_a_key_is_asked_with_it(visitors: WatchedBrowser, api_server: Any, tmp_path: Path) -> None:
    """The page opens for everybody and shows nothing before; the dashboard's key in the same tab is known to it."""
    with api_server(tmp_path, API_KEY=KEY) as server:
        page = visitors.page(f"{server.url}/docs")
        expect(page.get_by_role("heading", name="This server wants a key")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_role("article")).to_have_count(0)
        run_axe(page, "the form for the key")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("The server does not know that key.")).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("heading", name="Dipole trainer", exact=True)).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_role("main")).to_contain_text("with the value of DIPOLE_API_KEY, or another key")
        assert page.evaluate("sessionStorage.getItem('dipole-key')") == KEY
