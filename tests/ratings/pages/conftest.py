"""A real rating service, a real Chromium, and raters who come by a link."""

from __future__ import annotations

import base64
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Error, Page, Response, expect, sync_playwright

from dipole.protocol.images import decode_image
from dipole.web import http_server
from dipole_ratings.app import create_app
from dipole_ratings.settings import RatingsSettings

from . import pictures

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NO_CHROMIUM = (
    "the tests of the pages drive Chromium, and there is none: run `make browser`, or apt-get install chromium"
)
# what a browser itself writes about answers that a test expects
EXPECTED_CONSOLE = re.compile(r"Failed to load resource: (net::ERR_(INTERNET_DISCONNECTED|FAILED)|.* status of 4\d\d)")
# a candidate's id as a trainer might make it: nothing of it may reach a rater
SECRET_IDS = ["model-sdturbo.step-4711.seed-90210", "after", "before", "base-score-0.93", "gold", "checkpoint-12"]


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

    def add_tasks(self, count: int, **rating: Any) -> list[str]:
        """As many with prompts of their own, which come back."""
        prompts = pictures.choose_prompts(count)
        for index, prompt in enumerate(prompts):
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


class Visitors:
    """Makes browser contexts, and keeps what their pages asked for, got, and wrote to the console."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.asked: list[str] = []
        self.responses: list[Response] = []
        self.console: list[str] = []

    def context(self, **options: Any) -> BrowserContext:
        chosen: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        context = self.browser.new_context(**chosen)
        context.set_default_timeout(20_000)
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("response", lambda response: self.responses.append(response))
        context.on("console", lambda message: self._keep(message.type, message.text))
        context.on("weberror", lambda error: self._keep("error", str(error.error)))
        self.contexts.append(context)
        return context

    def page(self, url: str, **options: Any) -> Page:
        page = self.context(**options).new_page()
        page.goto(url)
        return page

    def rater(self, link: str, **options: Any) -> Page:
        """A page with a task whose images are there."""
        page = self.page(link, **options)
        wait_for_images(page)
        return page

    def _keep(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not EXPECTED_CONSOLE.match(text):
            self.console.append(f"{kind}: {text}")


@pytest.fixture
def visitors(browser: Browser) -> Iterator[Visitors]:
    """Whatever a test does, no page asks another host, and none writes an error to the console."""
    visitors = Visitors(browser)
    yield visitors
    for context in visitors.contexts:
        context.close()
    assert visitors.console == []
    foreign = [
        url for url in visitors.asked if not re.match(r"(http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1:)", url)
    ]
    assert foreign == []


def wait_for_images(page: Page) -> None:
    expect(page.locator(".picture img:not([data-state='loaded'])")).to_have_count(0)
    expect(page.locator(".picture img").first).to_be_visible()


def press(page: Page, keys: Sequence[str]) -> None:
    for key in keys:
        page.keyboard.press(key)


def wait_for_next(page: Page, prompt: str) -> None:
    """Until another task than this one is there, or none."""
    expect(page.locator("#prompt:visible", has_text=re.compile(f"^{re.escape(prompt)}$"))).to_have_count(0)


def run_axe(page: Page, what: str) -> None:
    """axe-core finds nothing, in light and in dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        if not page.evaluate("() => Boolean(window.axe)"):
            page.evaluate((Path(__file__).with_name("axe") / "axe.min.js").read_text())
        try:
            found = page.evaluate("async () => (await axe.run()).violations")
        except Error as error:
            raise AssertionError(f"axe did not run on {what}") from error
        told = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
        assert told == [], f"{what}, {scheme}"
