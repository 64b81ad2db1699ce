"""A rater learns nothing of where the images come from, and the browser nothing of any other host."""

from __future__ import annotations

import re
import struct

from playwright.sync_api import expect

from ...prefix_proxy import serve_below
from .conftest import SECRET_IDS, RatingService, Visitors, press, wait_for_images, wait_for_next

TELLING = re.compile(
    r"seed|step|model|score|gold|before|after|checkpoint|epoch|purpose|repeat|sdturbo|90210|4711", re.IGNORECASE
)


def test_nothing_that_a_rater_receives_tells_where_images_come_from(service: RatingService, visitors: Visitors) -> None:
    """DOM, addresses, headers, JSON and every byte of every image, over a task's whole life."""
    prompts = service.add_tasks(2)
    page = visitors.rater(service.invite())
    doms = [page.content()]
    press(page, ["a", "1", "b", "2", "Enter"])
    wait_for_next(page, prompts[0])
    wait_for_images(page)
    doms.append(page.content())
    page.keyboard.press("z")
    wait_for_next(page, prompts[1])
    wait_for_images(page)
    told = [f"DOM: {found.group()}" for dom in doms for found in TELLING.finditer(dom)]
    images = 0
    for response in visitors.responses:
        texts = [response.url, *(f"{name}: {value}" for name, value in response.all_headers().items())]
        kind = response.headers.get("content-type", "")
        body = b"" if response.status == 204 else response.body()
        if kind == "application/json":
            texts.append(body.decode())
        if kind == "image/png":
            images += 1
            assert chunks_of(body) <= {b"IHDR", b"IDAT", b"IEND"}
            assert not any(secret.encode() in body for secret in (*SECRET_IDS, "sdturbo", "90210", "4711"))
            assert "content-disposition" not in response.headers
        told += [f"{response.url}: {found.group()}" for text in texts for found in TELLING.finditer(text)]
    assert told == []
    assert images >= 8
    storage = page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
    assert TELLING.findall(storage) == []


def chunks_of(png: bytes) -> set[bytes]:
    found, at = set(), 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.add(png[at + 4 : at + 8])
        at += 12 + length
    return found


def test_pages_allow_scripts_of_their_own_alone(service: RatingService) -> None:
    """No inline script or style, no other host, no frame around them; and nothing of them needs a key."""
    for path in ("/rate", "/operator", "/static/rate.js", "/static/rate.css"):
        answer = service.api.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", answer.text) or path.endswith("js")
    assert service.api.get("/", follow_redirects=True).url.path == "/operator"


def test_pages_work_below_a_path_prefix(service: RatingService, visitors: Visitors) -> None:
    """A proxy that serves the service as /team/people: rating, images and invitations made there."""
    prompts = service.add_tasks(1)
    with serve_below(service.url, "/team/people") as url:
        operator = visitors.page(f"{url}/operator")
        operator.get_by_role("button", name="Invite").click()
        expect(operator.locator("#link-panel")).to_be_visible()
        link = operator.get_by_label("Invitation link").input_value()
        assert link.startswith(f"{url}/rate#invitation=")
        page = visitors.rater(link)
        press(page, ["a", "1", "b", "2"])
        expect(page.locator("#submit")).to_be_enabled()
        page.keyboard.press("Enter")
        wait_for_next(page, prompts[0])
    assert service.answers() == 1
