"""What keys, mouse and fingers do to a ranking, one thing at a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from .conftest import PHONE, RatingService, Visitors, press, wait_for_images
from .test_rating import placements, shown_prompt


@pytest.fixture
def page(service: RatingService, visitors: Visitors) -> Page:
    """A rater's page with four images that are twice as large as they are shown."""
    service.add_tasks(2)
    service.add_task("a large one", size=1024, priority=10)
    return visitors.rater(service.invite())


def tiers(page: Page) -> str:
    """ "1 2 - -" for A to D."""
    return " ".join(tier.removeprefix("tier ").replace("unranked", "-") for tier in placements(page).values())


def test_keys_place_move_tie_unrank_and_undo(page: Page) -> None:
    press(page, ["a", "1", "B", "3"])
    assert tiers(page) == "1 3 - -"
    expect(page.locator("#said")).to_have_text("Candidate B is in tier 3.")
    press(page, ["ArrowUp"])
    assert tiers(page) == "1 2 - -"
    press(page, ["c", "="])
    assert tiers(page) == "1 2 2 -"
    expect(page.locator("#said")).to_have_text("Candidate C is in tier 2, tied with B.")
    press(page, ["="])
    assert tiers(page) == "1 2 1 -"
    press(page, ["ArrowRight", "ArrowUp"])  # D, from the tray into the last tier
    assert tiers(page) == "1 2 1 4"
    press(page, ["ArrowDown", "ArrowLeft", "0"])
    assert tiers(page) == "1 2 - -"
    expect(page.locator("#said")).to_have_text("Candidate C is unranked.")
    press(page, ["z", "z"])
    assert tiers(page) == "1 2 1 4"
    expect(page.locator(".card[data-label=D]")).to_be_focused()


def test_keys_that_must_do_nothing_do_nothing(page: Page) -> None:
    """Backspace leaves no page, a held key counts once, a tier that is not there takes nothing, other keys go by."""
    address = page.url
    press(page, ["1"])
    expect(page.locator("#said")).to_contain_text("Select an image first")
    press(page, ["a", "Backspace", "6", "Control+1", "x", "Enter"])
    assert tiers(page) == "- - - -"
    assert page.url == address
    page.keyboard.down("ArrowUp")
    page.keyboard.down("ArrowUp")  # the second is a repeat
    page.keyboard.up("ArrowUp")
    assert tiers(page) == "4 - - -"


def test_keys_are_left_alone_while_typing_and_when_turned_off(page: Page) -> None:
    press(page, ["a", "s"])
    page.get_by_label("Another reason", exact=True).check()
    page.get_by_label("in your words").press_sequentially("b1 z0")
    page.keyboard.press("Escape")
    assert tiers(page) == "- - - -"
    press(page, ["?"])
    page.get_by_label("Keyboard shortcuts").uncheck()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    press(page, ["a", "1"])
    assert tiers(page) == "- - - -"
    page.reload()
    wait_for_images(page)
    press(page, ["a", "1"])
    assert tiers(page) == "- - - -"
    page.get_by_role("button", name="Help").click()
    page.get_by_label("Keyboard shortcuts").check()
    page.keyboard.press("Escape")
    press(page, ["a", "1"])
    assert tiers(page) == "1 - - -"


def test_a_button_that_has_the_focus_is_pressed_by_space_and_enter(page: Page) -> None:
    """Whoever goes by the Tab key alone ranks as well; neither key zooms or submits then."""
    place = page.get_by_role("button", name="Candidate A: tier 1, best")
    place.focus()
    page.keyboard.press("Space")
    assert tiers(page) == "1 - - -"
    page.get_by_role("button", name="Candidate B: tier 2").focus()
    page.keyboard.press("Enter")
    assert tiers(page) == "1 2 - -"
    expect(page.locator("#zoom")).to_have_attribute("aria-pressed", "false")
    expect(place).to_have_attribute("aria-pressed", "true")


def test_every_image_zooms_to_native_size_at_the_same_place(page: Page) -> None:
    """A click zooms all four about the point that was clicked; so does Space, and Shift with arrows looks around."""
    frames = page.locator(".picture")
    width = frames.first.bounding_box()["width"]  # type: ignore[index]
    assert len({box["width"] for box in (frame.bounding_box() for frame in frames.all()) if box}) == 1
    frames.nth(1).click(position={"x": width / 4, "y": width / 4})
    shown = [image.bounding_box() for image in page.locator(".picture img").all()]
    assert [box and round(box["width"]) for box in shown] == [1024] * 4
    assert looked_at(page) == [pytest.approx(width / 4, abs=1)] * 4
    press(page, ["Shift+ArrowRight"])
    assert looked_at(page) == [pytest.approx(0.4 * width, abs=1)] * 4
    assert tiers(page) == "- - - -"
    press(page, ["Space"])
    assert [box and round(box["width"]) for box in (i.bounding_box() for i in page.locator(".picture img").all())] == [
        round(width)
    ] * 4


def looked_at(page: Page) -> list[float]:
    """Where in each frame the zoom has its middle, from the left in pixels."""
    script = "image => parseFloat(getComputedStyle(image).transformOrigin)"
    return [float(image.evaluate(script)) for image in page.locator(".picture img").all()]


def drag(page: Page, source: str, target: str) -> None:
    a, b = page.locator(source).bounding_box(), page.locator(target).bounding_box()
    assert a is not None
    assert b is not None
    page.mouse.move(a["x"] + a["width"] / 2, a["y"] + a["height"] / 2)
    page.mouse.down()
    page.mouse.move(b["x"] + b["width"] / 2, b["y"] + b["height"] / 2, steps=4)
    page.mouse.up()


def test_dragging_with_a_mouse_places_and_does_not_zoom(page: Page) -> None:
    drag(page, ".card[data-label=C] .picture", ".lane[data-tier='1']")
    assert tiers(page) == "- - 1 -"
    drag(page, ".lane .thumb[data-drag=C]", ".lane[data-tier='3']")
    assert tiers(page) == "- - 3 -"
    drag(page, ".lane .thumb[data-drag=C]", ".lane.tray")
    assert tiers(page) == "- - - -"
    expect(page.locator("#zoom")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".ghost")).to_have_count(0)


def test_a_finger_that_rests_drags_and_one_that_moves_scrolls(service: RatingService, visitors: Visitors) -> None:
    service.add_tasks(1)
    page = visitors.context(**PHONE).new_page()
    page.clock.install()
    page.goto(service.invite())
    wait_for_images(page)
    touches = page.context.new_cdp_session(page)

    def touch(kind: str, selector: str | None) -> None:
        box = page.locator(selector).bounding_box() if selector else None
        points = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}] if box else []
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for rests in (False, True):
        touch("touchStart", ".card[data-label=B] .picture")
        if rests:
            page.clock.run_for(400)
            expect(page.locator(".ghost")).to_have_count(1)
        touch("touchMove", ".lane[data-tier='2']")
        touch("touchEnd", None)
        expect(page.locator(".ghost")).to_have_count(0)
        assert tiers(page) == ("- 2 - -" if rests else "- - - -")


def test_on_a_phone_all_that_is_touched_is_large_enough(service: RatingService, visitors: Visitors) -> None:
    """44 pixels a side, two columns of equal images, Submit in sight, and nothing to scroll sideways."""
    service.add_task("six of them", count=6)
    page = visitors.rater(service.invite(), **PHONE)
    small = []
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        if box is None or min(box["width"], box["height"]) < 44:
            small.append((button.inner_text(), box))
    assert small == []
    boxes = [frame.bounding_box() for frame in page.locator(".picture").all()]
    assert len({round(box["x"]) for box in boxes if box}) == 2
    assert len({(round(box["width"]), round(box["height"])) for box in boxes if box}) == 1
    expect(page.locator("#submit")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 720), (1024, 768), (844, 390)], ids=str)
def test_nothing_is_cut_off_at_any_size(size: tuple[int, int], service: RatingService, visitors: Visitors) -> None:
    """Images are equal and whole, Submit is in sight, and nothing lies over anything."""
    service.add_task("six of them", count=6)
    page = visitors.rater(service.invite(), viewport={"width": size[0], "height": size[1]})
    for frame in page.locator(".picture").all():
        expect(frame).to_be_in_viewport(ratio=0.99)
        box = frame.bounding_box()
        assert box is not None
        on_top = page.evaluate(
            "([x, y]) => Boolean(document.elementFromPoint(x, y).closest('.picture'))",
            [box["x"] + box["width"] - 3, box["y"] + box["height"] / 2],
        )
        assert on_top
    expect(page.locator("#submit")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_submit_waits_for_every_image(service: RatingService, visitors: Visitors) -> None:
    """While one is missing the answer cannot be given; one that failed is loaded again by its own button."""
    service.add_tasks(1)
    page = visitors.context().new_page()
    held: list[Route] = []
    seen: list[str] = []

    def hold_last(route: Route) -> Any:
        seen.append(route.request.url)
        if len(seen) == 4:
            return held.append(route)
        return route.abort() if len(seen) == 3 else route.continue_()

    page.route("**/v1/rater/images/*", hold_last)
    page.goto(service.invite())
    retry = page.get_by_role("button", name=re.compile("Load [A-D] again"))
    retry.wait_for()
    press(page, ["a", "1", "b", "2"])
    expect(page.locator("#submit-hint")).to_contain_text("could not be loaded")
    retry.click()
    expect(retry).to_be_hidden()
    expect(page.locator("#submit-hint")).to_have_text("The images are loading.")
    expect(page.locator("#submit")).to_be_disabled()
    held[0].continue_()
    expect(page.locator("#submit")).to_be_enabled()


def test_instructions_and_a_long_prompt_are_shown_whole(service: RatingService, visitors: Visitors) -> None:
    words = "a " + "very " * 80 + "red circle <b>and</b> a blue square"
    service.add_task(words, instructions="The redder the better.")
    page = visitors.rater(service.invite())
    assert shown_prompt(page) == words
    expect(page.locator("#instructions")).to_have_text("The redder the better.")
    expect(page.locator("#prompt")).to_be_in_viewport(ratio=0.99)
    expect(page.locator("#submit")).to_be_in_viewport(ratio=1)
