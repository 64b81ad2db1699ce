"""A real rating service, a real Chromium, and raters who come by a link."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect

from dipole.protocol.images import decode_image
from dipole.web import http_server
from dipole_ratings.app import create_app
from dipole_ratings.settings import RatingsSettings

from ...browser import PHONE, WatchedBrowser, closing, run_axe
from ...browser import browser as browser
from . import pictures

__all__ = ["PHONE", "run_axe"]

# a candidate's id as a trainer might make it: nothing of it may reach a rater
SECRET_IDS = ["model-sdturbo.step-4711.seed-90210", "after", "before", "base-score-0.93", "gold", "checkpoint-12"]


class RatingService:
    """The service as a trainer and an operator see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api = httpx.Client(base_url=url, timeout=30)
        self.tasks: dict[str, tuple[str, list[NDArray[np.uint8]]]] = {}  # prompt: (ranking, its images)

    def add_task(
        self,
        prompt: str,
        *,
        count: int = 4,
        size: int = 96,
        seed: int = 0,
        callback_url: str | None = None,
        **rating: Any,
    ) -> str:
        """Ask for a ranking, and remember it by its prompt, which must be new. Its id."""
        images = pictures.draw_candidates(prompt, count, size, seed)
        candidates = [
            {"id": name, "image": {"media_type": "image/png", "data": base64.b64encode(data).decode()}}
            for name, data in zip(SECRET_IDS, map(pictures.encode_png, images), strict=False)
        ]
        metadata = {"model": "sdturbo-secret", "seed": 90210, "step": 4711, "rating": rating}
        body = {"prompt": prompt, "candidates": candidates, "metadata": metadata, "callback_url": callback_url}
        answer = self.api.post("/v1/rank", json=body)
        assert answer.status_code == 202, answer.text
        ranking = str(answer.json()["id"])
        self.tasks[prompt] = (ranking, images)
        return ranking

    def add_tasks(self, count: int, *, first: int = 0, **rating: Any) -> list[str]:
        """As many with prompts of their own, which come back; those from the `first` on."""
        prompts = pictures.choose_prompts(first + count)[first:]
        for index, prompt in enumerate(prompts, first):
            self.add_task(prompt, seed=index, **rating)
        return prompts

    def invite(self, name: str = "Mira") -> str:
        """The whole address of a new invitation."""
        answer = self.api.post("/v1/ratings/invitations", json={"name": name})
        assert answer.status_code == 201, answer.text
        return self.url + str(answer.json()["link"])

    def figures(self) -> dict[str, Any]:
        return dict(self.api.get("/v1/ratings/status").json())

    def answers(self) -> int:
        """How many were given and not undone, skips left out."""
        return int(self.figures()["answered"])

    def ranks(self, prompt: str) -> list[int | None]:
        """Of a finished task's candidates, in their order."""
        answer = self.api.get(f"/v1/rankings/{self.tasks[prompt][0]}")
        assert answer.status_code == 200, answer.text
        return [item["rank"] for item in answer.json()["results"]]

    def tell_labels(self, page: Page) -> dict[int, str]:
        """Which candidate of the shown task has which label, known by its pixels, as nothing else tells it."""
        prompt = page.locator("#prompt").inner_text()
        _, images = self.tasks[prompt]
        found = {}
        for image in page.locator(".picture img").all():
            data = page.context.request.get(f"{self.url}/{image.get_attribute('src')}").body()
            pixels = decode_image(data, "image/png", max_pixels=2**24, field="image")
            (index,) = [index for index, other in enumerate(images) if np.array_equal(other, pixels)]
            found[index] = str(image.get_attribute("alt")).removeprefix("Candidate ")
        return found


@contextmanager
def serve_ratings(folder: Path, **settings: Any) -> Iterator[RatingService]:
    """A service on a free port of loopback, without gold and repeats, so that a test knows its tasks."""
    chosen = {
        "ratings_database_url": f"sqlite:///{folder}/ratings.db", "ratings_gold_share": 0.0,
        "ratings_repeat_share": 0.0, "ratings_undo_s": 0.0, **settings,
    }  # fmt: skip
    app = create_app(RatingsSettings(**chosen))
    server = http_server.create_server(app, host="127.0.0.1", port=0, timeout_graceful_shutdown=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        service = RatingService(f"http://127.0.0.1:{port}")
        with service.api:
            yield service
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """`with serve(ratings_lease_s=4) as service:`"""
    return lambda **settings: serve_ratings(tmp_path, **settings)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RatingService]:
    with serve_ratings(tmp_path) as service:
        yield service


class Visitors(WatchedBrowser):
    """Raters and operators, whose network a test may take away."""

    expected_console = re.compile(
        r"Failed to load resource: (net::ERR_(INTERNET_DISCONNECTED|FAILED)|.* status of 4\d\d)"
    )
    timeout_ms = 20_000

    def rater(self, link: str, **options: Any) -> Page:
        """A page with a task whose images are there."""
        page = self.page(link, **options)
        wait_for_images(page)
        return page


@pytest.fixture
def visitors(browser: Browser) -> Iterator[Visitors]:
    with closing(Visitors(browser)) as visitors:
        yield visitors


def wait_for_images(page: Page) -> None:
    """First that they are on the page: of images that are not there yet, none is still loading."""
    expect(page.locator(".picture img").first).to_be_visible()
    expect(page.locator(".picture img:not([data-state='loaded'])")).to_have_count(0)


def press(page: Page, keys: Sequence[str]) -> None:
    for key in keys:
        page.keyboard.press(key)


def wait_for_next(page: Page, prompt: str) -> None:
    """Until another task than this one is there, or none."""
    expect(page.locator("#prompt:visible", has_text=re.compile(f"^{re.escape(prompt)}$"))).to_have_count(0)
