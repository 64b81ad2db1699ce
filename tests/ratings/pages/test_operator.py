"""The operator's page: who may rate, how it goes, what was delivered."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import expect

from .conftest import RatingService, Visitors, press, serve_ratings, wait_for_next

KEY = "a-key-of-sixteen-or-more"
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def test_a_link_is_made_shown_once_used_and_revoked(service: RatingService, visitors: Visitors) -> None:
    prompts = service.add_tasks(2, job="ftjob-7")
    page = visitors.page(f"{service.url}/operator")
    expect(page.get_by_text("Nobody is invited yet.")).to_be_visible()
    page.get_by_label("Name").fill("Mira <b>")
    page.get_by_role("button", name="Invite").click()
    expect(page.locator("#link-panel")).to_be_visible()
    link = page.get_by_label("Invitation link").input_value()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    invited = page.locator("#invitations").get_by_role("row", name="Mira <b>")
    expect(invited).to_contain_text("active")
    rater = visitors.rater(link)
    press(rater, ["a", "1", "b", "2", "Enter"])
    wait_for_next(rater, prompts[0])

    page.reload()
    expect(page.locator("#link-panel")).to_be_hidden()
    assert link.split("=")[1] not in page.content()
    expect(page.locator("#figure-answered")).to_have_text("1")
    expect(page.locator("#figure-leased")).to_have_text("1")
    expect(page.locator("#jobs").get_by_role("row", name="ftjob-7")).to_be_visible()
    expect(page.locator("#raters").get_by_role("row", name="Mira <b>")).to_contain_text("rates")

    page.get_by_role("button", name="Revoke: invitation of Mira <b>").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(invited).to_contain_text("revoked")
    rater.reload()
    expect(rater.get_by_role("heading", name="You need an invitation")).to_be_visible()


def test_a_rater_is_paused_resumed_and_forgotten(service: RatingService, visitors: Visitors) -> None:
    """A paused rater sees it at whatever comes next, here at taking back an answer that could still be."""
    prompts = service.add_tasks(2, min_ratings=2, max_ratings=2)
    rater = visitors.rater(service.invite("Jonas"))
    press(rater, ["a", "1", "b", "2", "Enter"])
    wait_for_next(rater, prompts[0])
    page = visitors.page(f"{service.url}/operator")
    row = page.locator("#raters").get_by_role("row", name="Jonas")
    page.get_by_role("button", name="Pause: Jonas").click()
    expect(row).to_contain_text("paused")
    rater.keyboard.press("z")
    expect(rater.get_by_role("heading", name="Your ratings are paused")).to_be_visible()
    page.get_by_role("button", name="Resume: Jonas").click()
    expect(row).to_contain_text("rates")
    page.get_by_role("button", name="Forget: Jonas").click()
    page.get_by_role("dialog").get_by_role("button", name="Back").click()
    expect(row).to_be_visible()
    page.get_by_role("button", name="Forget: Jonas").click()
    page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    expect(row).to_have_count(0)


def test_a_protected_service_asks_for_its_key_and_keeps_it_in_the_tab(tmp_path: Any, visitors: Visitors) -> None:
    with serve_ratings(tmp_path, ratings_key=KEY) as service:
        page = visitors.page(f"{service.url}/operator")
        page.get_by_role("textbox", name="Key").fill("not-the-key-at-all")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("heading", name="That key does not open it")).to_be_visible()
        page.get_by_role("textbox", name="Key").fill(KEY)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("heading", name="People who rank")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="People who rank")).to_be_visible()
        assert KEY not in json.dumps(page.evaluate("({...localStorage})"))
        page.get_by_role("button", name="Forget the key").click()
        expect(page.get_by_role("heading", name="This service has a key")).to_be_visible()


def test_a_delivery_is_sent_again(tmp_path: Any, visitors: Visitors) -> None:
    """A callback that nobody takes is listed with its error; Resend owes it anew."""
    settings = {"ratings_callback_hosts": ["127.0.0.1"], "ratings_callback_secret": SECRET}
    with serve_ratings(tmp_path, **settings) as service:
        service.add_task("a red circle and a blue square", callback_url="http://127.0.0.1:9/taken")
        rater = visitors.rater(service.invite())
        press(rater, ["a", "1", "b", "2", "c", "3", "d", "4", "Enter"])
        wait_for_next(rater, "a red circle and a blue square")
        page = visitors.page(f"{service.url}/operator")
        region = page.locator("#deliveries")
        expect(region.get_by_role("row", name="http://127.0.0.1:9/taken")).to_contain_text("waiting", timeout=15_000)
        with page.expect_response(lambda response: response.url.endswith("/resend")) as sent:
            page.get_by_role("button", name="Resend").click()
        assert sent.value.ok
        expect(region).to_contain_text("waiting")


def test_answers_are_exported(service: RatingService, visitors: Visitors) -> None:
    prompts = service.add_tasks(1, max_ratings=1)
    rater = visitors.rater(service.invite())
    press(rater, ["a", "1", "b", "2", "c", "3", "d", "4", "Enter"])
    wait_for_next(rater, prompts[0])
    page = visitors.page(f"{service.url}/operator")
    with page.expect_download() as download:
        page.get_by_role("button", name="JSONL").click()
    assert download.value.suggested_filename == "ratings.jsonl"
    assert prompts[0] in download.value.path().read_text()
