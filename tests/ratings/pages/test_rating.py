"""A rater's hour in a real browser at the real service: by keyboard, by touch, through lost networks and leases."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from .conftest import PHONE, RatingService, Visitors, press, wait_for_images, wait_for_next

TASKS = 10


def shown_prompt(page: Page) -> str:
    wait_for_images(page)
    return page.locator("#prompt").inner_text()


def placements(page: Page) -> dict[str, str]:
    """{"A": "tier 1", …} as the page says it to those who do not see it."""
    cards = [str(card.get_attribute("aria-label")) for card in page.locator(".card").all()]
    return {card[len("Candidate ")]: card.split(", ")[1] for card in cards}


def rank_by_keys(page: Page, labels: dict[int, str], tiers: dict[int, int]) -> None:
    for index, tier in tiers.items():
        press(page, [labels[index].lower(), str(tier)])


def rank_by_taps(page: Page, labels: dict[int, str], tiers: dict[int, int]) -> None:
    for index, tier in tiers.items():
        page.locator(f".card[data-label={labels[index]}] .picture").tap()
        page.locator(f".lane[data-tier='{tier}'] .lane-button").tap()


def submit_by_keys(page: Page) -> None:
    expect(page.locator("#submit")).to_be_enabled()
    page.keyboard.press("Enter")


def submit_by_tap(page: Page) -> None:
    page.locator("#submit").tap()


WAYS: dict[str, tuple[dict[str, Any], Callable[..., None], Callable[..., None]]] = {
    "keyboard": ({}, rank_by_keys, submit_by_keys),
    "touch": (PHONE, rank_by_taps, submit_by_tap),
}


@pytest.mark.parametrize("way", WAYS)
def test_ten_tasks_one_undone_one_reloaded_one_through_a_lost_network(way: str, serve: Any, visitors: Visitors) -> None:
    """Whatever happens to page and network, each task ends with one answer, and the rater types nothing twice."""
    options, rank, submit = WAYS[way]
    with serve(ratings_undo_s=60) as service:
        service.add_tasks(TASKS)
        page = visitors.rater(service.invite(), **options)
        assert "invitation" not in page.url
        for number in range(TASKS):
            prompt = shown_prompt(page)
            labels = service.tell_labels(page)
            assert set(placements(page).values()) == {"unranked"}
            expect(page.locator("#submit")).to_be_disabled()
            if number == 2:  # a mistake, noticed once it is sent
                rank(page, labels, {3: 1, 0: 2})
                submit(page)
                wait_for_next(page, prompt)
                page.keyboard.press("z") if way == "keyboard" else page.locator("#undo").tap()
                expect(page.locator("#prompt")).to_have_text(prompt)
                wait_for_images(page)
                assert placements(page) == {labels[3]: "tier 1", labels[0]: "tier 2"} | {
                    labels[index]: "unranked" for index in (1, 2)
                }
            if number == 4:  # reloaded half-way
                rank(page, labels, {2: 3, 1: 2})
                page.reload()
                assert shown_prompt(page) == prompt
                labels = service.tell_labels(page)
                assert placements(page)[labels[2]] == "tier 3"
            rank(page, labels, {0: 1, 1: 2, 2: 3, 3: 4})
            if number == 6:  # the network goes as it is sent
                page.context.set_offline(True)
                submit(page)
                expect(page.locator("#offline")).to_contain_text("Not sent yet; trying again.")
                assert service.answers() == number
                page.context.set_offline(False)
            else:
                submit(page)
            wait_for_next(page, prompt)
            assert service.answers() == number + 1
        expect(page.get_by_role("heading", name="Nothing to rank right now")).to_be_visible()
        expect(page.locator("#empty-count")).to_contain_text("10 sets today")


@pytest.mark.parametrize("way", WAYS)
def test_every_ranking_is_what_the_rater_said(way: str, service: RatingService, visitors: Visitors) -> None:
    """Ties and what is left unranked reach the trainer as such, whatever order the images were shown in."""
    options, rank, submit = WAYS[way]
    prompts = service.add_tasks(3, max_ratings=1)
    page = visitors.rater(service.invite(), **options)
    for _ in prompts:
        prompt = shown_prompt(page)
        rank(page, service.tell_labels(page), {2: 2, 3: 1, 0: 2, 1: 4})
        submit(page)
        wait_for_next(page, prompt)
    for prompt in prompts:
        assert service.ranks(prompt) == [2, 4, 2, 1]


def test_an_answer_whose_receipt_is_lost_counts_once(service: RatingService, visitors: Visitors) -> None:
    """The server has the answer, the page does not know: it is sent again under the same key, and not doubled."""
    first, _ = service.add_tasks(2)
    page = visitors.rater(service.invite())
    keys: list[str] = []

    def lose_first_receipt(route: Route) -> None:
        keys.append(str(route.request.headers["idempotency-key"]))
        if len(keys) > 1:
            return route.continue_()
        route.fetch()
        route.abort()

    page.route("**/answer", lose_first_receipt)
    rank_by_keys(page, service.tell_labels(page), {0: 1, 1: 2})
    submit_by_keys(page)
    expect(page.locator("#offline")).to_be_visible()
    assert service.answers() == 1
    page.get_by_role("button", name="Try now").click()
    wait_for_next(page, first)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert service.answers() == 1


def test_an_answer_outlives_the_closed_page(service: RatingService, visitors: Visitors) -> None:
    """What could not be sent is sent when the rater comes back, even without the invitation's link."""
    first, second = service.add_tasks(2)
    page = visitors.rater(service.invite())
    page.route("**/answer", lambda route: route.abort())
    rank_by_keys(page, service.tell_labels(page), {0: 1, 1: 2})
    submit_by_keys(page)
    expect(page.locator("#offline")).to_be_visible()
    context = page.context
    page.close()
    again = context.new_page()
    again.goto(f"{service.url}/rate")
    expect(again.locator("#prompt")).to_have_text(second)
    assert service.answers() == 1
    assert first != second


def test_a_lapsed_task_is_taken_again_with_its_ranking(serve: Any, visitors: Visitors) -> None:
    """When the time ran out, the task comes under another lease, its images under other names: the ranking is found."""
    with serve(ratings_lease_s=4) as service:
        (prompt,) = service.add_tasks(1)
        page = visitors.rater(service.invite())
        labels = service.tell_labels(page)
        names = [page.locator(f".card[data-label={label}] img").get_attribute("src") for label in "ABCD"]
        rank_by_keys(page, labels, {0: 1, 2: 2})
        page.get_by_role("button", name="Take it up again").click()
        expect(page.locator(".picture img").first).not_to_have_attribute("src", names[0] or "")
        assert shown_prompt(page) == prompt
        labels = service.tell_labels(page)
        expect(page.locator(f".card[data-label={labels[0]}]")).to_have_attribute(
            "aria-label", f"Candidate {labels[0]}, tier 1, best"
        )
        assert placements(page)[labels[2]] == "tier 2"
        renamed = [page.locator(f".card[data-label={label}] img").get_attribute("src") for label in "ABCD"]
        assert not set(names) & set(renamed)
        submit_by_keys(page)
        wait_for_next(page, prompt)
        assert service.answers() == 1


def test_a_late_answer_counts_while_its_place_is_free(serve: Any, visitors: Visitors) -> None:
    """Who was ready as the time ran out need not take the task again."""
    with serve(ratings_lease_s=2) as service:
        (prompt,) = service.add_tasks(1)
        page = visitors.rater(service.invite())
        rank_by_keys(page, service.tell_labels(page), {0: 1, 2: 2})
        page.get_by_role("button", name="Take it up again").wait_for()
        submit_by_keys(page)
        wait_for_next(page, prompt)
        assert service.answers() == 1


def test_who_works_keeps_the_lease_and_who_left_is_warned(service: RatingService, visitors: Visitors) -> None:
    """A heartbeat goes out a minute after the last one if the rater did something, and none while nobody is there."""
    service.add_tasks(1)
    page = visitors.context().new_page()
    page.clock.install()
    page.goto(service.invite())
    wait_for_images(page)
    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.keyboard.press("a")
        page.clock.fast_forward(61_000)
    expect(page.locator("#time-left")).to_have_text(re.compile(r"10:00|9:5\d"))
    beats = count_lease_requests(visitors)
    page.clock.fast_forward(541_000)
    expect(page.locator("#lease-title")).to_have_text(re.compile(r"0:5\d left on this task."))
    expect(page.locator("#alarm")).to_contain_text("left on this task")
    expect(page.locator("#clock")).to_contain_text("Time left on this task: 0:5")
    assert count_lease_requests(visitors) == beats
    page.get_by_role("button", name="Keep this task").click()
    expect(page.locator("#lease-notice")).to_be_hidden()
    expect(page.locator("#time-left")).to_have_text(re.compile(r"10:00|9:5\d"))
    assert count_lease_requests(visitors) == beats + 1


def count_lease_requests(visitors: Visitors) -> int:
    return len([url for url in visitors.asked if re.search(r"/leases/[\w-]+$", url)])


def test_two_raters_side_by_side_never_get_the_same_place(service: RatingService, visitors: Visitors) -> None:
    """Each task wants one rating: at no time do both look at the same one, and together they give as many as asked."""
    prompts = service.add_tasks(8, max_ratings=1)
    pages = [visitors.rater(service.invite(name)) for name in ("Mira", "Jonas")]
    seen: list[str] = []
    while len(seen) < len(prompts):
        now = [shown_prompt(page) if page.locator("#screen-task").is_visible() else None for page in pages]
        assert now[0] != now[1]
        page = pages[len(seen) % 2]
        prompt = shown_prompt(page)
        seen.append(prompt)
        press(page, ["a", "1", "b", "2"])
        submit_by_keys(page)
        wait_for_next(page, prompt)
    assert sorted(seen) == sorted(prompts)
    for page in pages:
        expect(page.get_by_role("heading", name="Nothing to rank right now")).to_be_visible()
    assert service.answers() == len(prompts)


def test_fifteen_at_once_give_exactly_the_answers_asked_for(service: RatingService, visitors: Visitors) -> None:
    """200 tasks, of which 20 want two ratings: no answer is surplus, lost or doubled, and no page keeps a task."""
    prompts = service.add_tasks(180, size=24, max_ratings=1)
    prompts += service.add_tasks(20, first=180, size=24, min_ratings=2, max_ratings=2)
    pages = [visitors.rater(service.invite(f"Rater {number}")) for number in range(15)]
    receipts: list[dict[str, Any]] = []
    for page in pages:
        page.on("response", lambda told: receipts.append(told.json()) if told.url.endswith("/answer") else None)
    while busy := [page for page in pages if page.locator("#screen-task").is_visible()]:
        shown = [shown_prompt(page) for page in busy]
        for page in busy:
            press(page, ["a", "1", "b", "2", "c", "3"])
        for page in busy:  # all within a moment
            submit_by_keys(page)
        for page, prompt in zip(busy, shown, strict=True):
            wait_for_next(page, prompt)
            expect(page.locator("#screen-task:visible, #screen-empty:visible")).to_have_count(1)
    for page in pages:
        expect(page.get_by_role("heading", name="Nothing to rank right now")).to_be_visible()
    assert len(receipts) == service.answers() == 220
    assert all(receipt["counted"] for receipt in receipts)
    assert all(len(service.ranks(prompt)) == 4 for prompt in prompts)  # each is finished


def test_leaving_gives_an_untouched_task_to_the_next(service: RatingService, visitors: Visitors) -> None:
    """A page that is closed before anything was ranked holds nothing; one that is left by its button neither."""
    (prompt,) = service.add_tasks(1)
    first = visitors.rater(service.invite("Mira"))
    first.close()
    second = visitors.rater(service.invite("Jonas"))
    assert shown_prompt(second) == prompt
    press(second, ["a", "1"])
    second.get_by_role("button", name="Leave").click()
    expect(second.get_by_role("heading", name="Thank you")).to_be_visible()
    third = visitors.rater(service.invite("Ada"))
    assert shown_prompt(third) == prompt


def test_skip_says_why_and_none_usable_is_an_answer(service: RatingService, visitors: Visitors) -> None:
    prompts = service.add_tasks(3)
    page = visitors.rater(service.invite())
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "/answer" in request.url else None)
    first = shown_prompt(page)
    press(page, ["s", "ArrowDown", "Enter"])
    wait_for_next(page, first)
    second = shown_prompt(page)
    page.get_by_role("button", name="Skip").click()
    page.get_by_label("Another reason", exact=True).check()
    page.get_by_label("in your words").fill("two of them are the same")
    page.get_by_role("dialog").get_by_role("button", name="Skip").click()
    wait_for_next(page, second)
    third = shown_prompt(page)
    page.get_by_role("button", name="None usable").click()
    wait_for_next(page, third)
    assert {first, second, third} == set(prompts)
    assert bodies[0]["skip"] == "prompt_unclear"
    assert bodies[1]["skip"] == "other: two of them are the same"
    assert bodies[2]["none_usable"] is True
    assert all(body["dwell_ms"] >= 0 for body in bodies)
    assert service.answers() == 1


def test_nothing_to_do_paused_and_without_an_invitation(service: RatingService, visitors: Visitors) -> None:
    """Each state says what it is and ends by itself: new work is found, who may go on does."""
    link = service.invite()
    page = visitors.page(link)
    expect(page.get_by_role("heading", name="Nothing to rank right now")).to_be_visible()
    (prompt,) = service.add_tasks(1)
    expect(page.locator("#prompt")).to_have_text(prompt, timeout=15_000)

    (rater,) = [each["rater"] for each in service.api.get("/v1/ratings/raters").json()]
    service.api.patch(f"/v1/ratings/raters/{rater}", json={"paused": True})
    page.reload()
    expect(page.get_by_role("heading", name="Your ratings are paused")).to_be_visible()
    service.api.patch(f"/v1/ratings/raters/{rater}", json={"paused": False})
    page.reload()
    expect(page.locator("#prompt")).to_have_text(prompt)

    stranger = visitors.page(f"{service.url}/rate#invitation=made-up")
    expect(stranger.get_by_role("heading", name="You need an invitation")).to_be_visible()
    expect(stranger.locator("#invitation-text")).to_contain_text("This invitation is unknown, revoked or expired")
    page.get_by_role("button", name="Leave").click()
    stranger.get_by_label("Invitation link").fill(link)
    stranger.get_by_role("button", name="Come in").click()
    expect(stranger.locator("#prompt")).to_have_text(prompt)

    (invitation,) = service.api.get("/v1/ratings/invitations").json()
    service.api.delete(f"/v1/ratings/invitations/{invitation['id']}")
    press(stranger, ["a", "1", "b", "2"])
    submit_by_keys(stranger)
    expect(stranger.get_by_role("heading", name="You need an invitation")).to_be_visible()
