"""A whole platform in its real processes, a job that trained on it, and a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from dipole.client.trainer_api import TrainerApi
from dipole.stack.stack import Stack
from dipole.tiny.job import build_demo_prompts

from ...browser import PHONE, WatchedBrowser, closing, run_axe
from ...browser import browser as browser
from ...referee import referee as referee

__all__ = ["PATIENCE_MS", "PHONE", "Platform", "WatchedBrowser", "run_axe"]

PATIENCE_MS = 300_000  # for what takes seconds on an idle machine
STEPS = 6
HOSTILE = ' </h3><script>document.title = "taken"</script><img src="http://127.0.0.1:9/x" onerror="alert(1)">'


@pytest.fixture
def visitors(browser: Browser) -> Iterator[WatchedBrowser]:
    with closing(WatchedBrowser(browser)) as visitors:
        yield visitors


@dataclass
class Platform:
    """A running stack as its operator sees it."""

    stack: Stack
    api: TrainerApi
    held_out: str  # id of a file of prompts

    @property
    def url(self) -> str:
        return self.stack.api_url

    def submit(self, **more: Any) -> str:
        """A small job of two trained rewards that keeps its candidates; its id."""
        body = {
            "model": "tiny-turbo",
            "features": {"type": "tiny_contrastive"},
            "prompts": build_demo_prompts(held_out=False)[:8],
            "rewards": [{"name": "shapes"}, {"name": "colourfulness", "weight": 0.5}],
            "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}},
            "steps": STEPS,
            "candidates": 6,
            "prompts_per_step": 2,
            "chunk_size": 16,
            "validation_file": self.held_out,
            "evaluation": {"images_per_prompt": 2, "every": 3},
            "checkpoint_every": 3,
            "record_candidates": True,
            "suffix": "first",
            **more,
        }
        return str(self.api.post("/v1/fine_tuning/jobs", body)["id"])

    def until(self, job: str, state: str) -> None:
        for event in self.api.follow_events(job):
            if event["kind"] == state:
                return
        found = self.api.get(f"/v1/fine_tuning/jobs/{job}")
        assert found["status"] == state, found


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Stack(tmp_path_factory.mktemp("dashboard")) as stack, TrainerApi(stack.api_url, None) as api:
        path = stack.home / "held-out.jsonl"
        lines = build_demo_prompts(held_out=True)[:2]
        lines[1]["prompt"] += HOSTILE
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        yield Platform(stack, api, str(api.upload_file(path)["id"]))


@pytest.fixture(scope="module")
def trained(platform: Platform) -> str:
    """A job that has trained to its end; its id."""
    job = platform.submit()
    platform.until(job, "succeeded")
    return job


def rows_of(page: Page, title: str) -> list[list[str]]:
    """The table beside a chart, cell by cell, the newest row first."""
    figure = page.get_by_role("figure", name=title, exact=True)
    expect(figure).to_be_visible()
    if figure.locator("details:not([open])").count():
        figure.get_by_text("Table", exact=True).click()
    expect(figure.locator("tbody tr").first).to_be_visible()
    return [row.locator("th, td").all_inner_texts() for row in figure.locator("tbody tr").all()]


def open_browser_page(browser: Browser, url: str, **options: Any) -> Page:
    """A page whose console nobody looks at: its server will be taken away."""
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    return page
