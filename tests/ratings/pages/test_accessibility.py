"""axe-core finds nothing on any state of either page, in light and in dark, on a desk and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import PHONE, RatingService, Visitors, press, run_axe, serve_ratings, wait_for_images

DESK: dict[str, Any] = {}


@pytest.mark.parametrize("options", [DESK, PHONE], ids=["desk", "phone"])
def test_a_task_in_every_state(options: dict[str, Any], serve: Any, visitors: Visitors) -> None:
    with serve(ratings_lease_s=1200) as service:
        service.add_task("six of them", count=6, instructions="The redder the better.", priority=5)
        service.add_task("four of them", count=4)
        page = visitors.context(**options).new_page()
        page.clock.install()
        page.goto(service.invite())
        wait_for_images(page)
        run_axe(page, "a new task")
        press(page, ["a", "1", "b", "2", "c", "=", "Space"])
        run_axe(page, "a task half ranked, zoomed")
        page.clock.fast_forward(1_150_000)
        expect(page.locator("#lease-title")).to_contain_text("left on this task")
        run_axe(page, "a lease about to lapse")
        press(page, ["s"])
        run_axe(page, "the reasons to skip")
        press(page, ["Escape", "?"])
        run_axe(page, "the help")
        press(page, ["Escape"])
        page.route("**/answer", lambda route: route.abort())
        page.locator("#submit").click()
        expect(page.locator("#offline")).to_be_visible()
        run_axe(page, "an answer that is not sent")


def test_screens_without_a_task(service: RatingService, visitors: Visitors) -> None:
    page = visitors.page(service.invite())
    expect(page.locator("#screen-empty")).to_be_visible()
    run_axe(page, "nothing to do")
    (rater,) = [each["rater"] for each in service.api.get("/v1/ratings/raters").json()]
    service.api.patch(f"/v1/ratings/raters/{rater}", json={"paused": True})
    page.reload()
    expect(page.locator("#screen-paused")).to_be_visible()
    run_axe(page, "paused")
    page.get_by_role("button", name="Leave").click()
    expect(page.locator("#screen-left")).to_be_visible()
    run_axe(page, "left")
    page.reload()
    expect(page.locator("#screen-invitation")).to_be_visible()
    run_axe(page, "no invitation")


def test_the_operators_page(tmp_path: Any, visitors: Visitors) -> None:
    key = "a-key-of-sixteen-or-more"
    with serve_ratings(tmp_path, ratings_key=key) as service:
        page = visitors.page(f"{service.url}/operator")
        expect(page.locator("#key-screen")).to_be_visible()
        run_axe(page, "the key")
        service.api.headers["Authorization"] = f"Bearer {key}"
        service.add_tasks(2, job="ftjob-1")
        visitors.rater(service.invite("Jonas"))
        page.get_by_role("textbox", name="Key").fill(key)
        page.get_by_role("button", name="Open").click()
        page.get_by_label("Name").fill("Mira")
        page.get_by_role("button", name="Invite").click()
        expect(page.locator("#link-panel")).to_be_visible()
        run_axe(page, "the operator's page")
        page.set_viewport_size({"width": 390, "height": 844})
        run_axe(page, "the operator's page on a phone")
        page.get_by_role("button", name="Revoke: invitation of Mira").click()
        run_axe(page, "a question before something goes for good")
