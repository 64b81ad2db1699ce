"""The dashboard in a real Chromium over the platform's real processes: what an operator sees and does."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect
from sqlalchemy import update

from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import EventRow, JobRow
from dipole_trainer.jobs.store import JobStore

from ...ratings.people import group
from .conftest import HOSTILE, PATIENCE_MS, PHONE, STEPS, Platform, WatchedBrowser, open_browser_page, rows_of, run_axe

pytestmark = pytest.mark.timeout(900)  # a stack and its jobs, on a machine that does other things too
KEY = "an-admin-key-of-some-length"
HASH = re.compile(r"ftjob-[0-9a-f]{24}")


def state_of(page: Page, name: str) -> Any:
    return page.locator(f".head .state.{name}")


def test_a_job_is_started_watched_paused_and_resumed_by_click(
    platform: Platform, visitors: WatchedBrowser, referee: Callable[..., Any]
) -> None:
    """From the list to the end of the job, live: the page is never loaded again. While it is paused, its weights are
    changed: a wrong one is told beside its field's form, and what is right shows in the curves.
    """
    server = referee()
    server.hold(after=4)  # two a step: the third waits until the page has paused the job
    watched = {"name": "referee", "url": server.url, "weight": 0, "timeout_s": 300}
    rewards = [{"name": "shapes"}, {"name": "colourfulness", "weight": 0.5}, watched]
    job = platform.submit(
        steps=10, rewards=rewards, suffix="watched", checkpoint_every=100, evaluation={}, validation_file=None
    )
    page = visitors.page(platform.url)
    row = page.locator(f"#{job}")
    expect(row).to_contain_text("watched")
    row.get_by_role("link", name="watched").click()
    expect(page.get_by_role("heading", name="watched", level=1)).to_be_visible()
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator(".events [data-kind='step']").first).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Pause").click()
    expect(state_of(page, "paused")).to_be_visible(timeout=PATIENCE_MS)
    weights = page.get_by_role("region", name="Weights")
    weights.get_by_label("shapes").fill("0")
    weights.get_by_label("colourfulness").fill("0")
    weights.get_by_role("button", name="Change the weights").click()
    expect(weights.get_by_role("alert")).to_contain_text("at least one needs a weight")
    weights.get_by_label("shapes").fill("-2")
    weights.get_by_role("button", name="Change the weights").click()
    expect(weights.get_by_text("A change waits for the next step to begin.")).to_be_visible()
    expect(weights.get_by_role("alert")).to_be_hidden()
    run_axe(page, "the weights of a paused job")
    server.hold(after=None)
    page.get_by_role("button", name="Resume").click()
    expect(state_of(page, "succeeded")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#connection")).to_have_text("job has ended")
    (change,) = platform.api.get(f"/v1/fine_tuning/jobs/{job}")["weight_changes"]
    expect(page.locator(".events [data-kind='weights_changed']")).to_contain_text(
        "shapes 1 → -2, colourfulness 0.5 → 0"
    )
    expect(page.get_by_text("Dashed lines: weights changed")).to_contain_text(f"after step {change['step']}")
    expect(weights.get_by_role("button", name="Change the weights")).to_be_hidden()
    expect(page.locator(".events [data-kind='resumed']")).to_have_count(1)
    # each step once, whatever was trained twice
    assert [row[0] for row in rows_of(page, "Learning rate")] == [str(step) for step in range(10, 0, -1)]


def test_every_curve_has_its_numbers_beside_it(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    """A reward's table has both its curves: on training prompts by step, on held-out prompts with their interval."""
    page = visitors.page(f"{platform.url}/jobs/{trained}?smooth=0")
    events = platform.api.get(f"/v1/fine_tuning/jobs/{trained}/metrics")
    rows = rows_of(page, "shapes")
    assert [row[0] for row in rows] == [str(step) for step in range(STEPS, -1, -1)]
    by_step = {row[0]: row for row in rows}
    for point in events["steps"]["data"]:
        assert float(by_step[str(point["step"])][1]) == pytest.approx(point["rewards"]["shapes"], abs=1e-3)
    for point in events["evaluations"]["data"]:
        told, score = by_step[str(point["step"])], point["scores"]["shapes"]
        shown = [float(each.replace("−", "-")) for each in told[2:5]]
        assert shown == pytest.approx([score["mean"], score["low"], score["high"]], abs=1e-3)
    for title in (
        "Parts of shapes", "Spread in a group", "Diversity: mean distance in φ", "Diversity, of the base's",
        "Loss and its drifts", "Groups skipped, candidates not finite", "Images a second", "Time by phase",
    ):  # fmt: skip
        assert len(rows_of(page, title)) in (STEPS, len(events["evaluations"]["data"])), title


def test_the_address_keeps_the_view(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    page = visitors.page(f"{platform.url}/jobs/{trained}")
    page.get_by_text("Wall clock", exact=True).click()
    page.get_by_text("Normalised", exact=True).click()
    expect(page.get_by_role("figure", name="All rewards, training prompts, normalised")).to_be_visible()
    assert {"x=time", "scale=normalised"} <= set(page.url.partition("?")[2].split("&"))
    again = visitors.page(page.url)
    rows = rows_of(again, "All rewards, held-out prompts, against the base")
    assert rows[-1][1:3] == ["0", "–"]  # the base against itself
    assert rows == rows_of(page, "All rewards, held-out prompts, against the base")


def test_what_is_shown_is_saved_as_csv_json_and_png(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    page = visitors.page(f"{platform.url}/jobs/{trained}")
    rows = rows_of(page, "Learning rate")
    found: dict[str, bytes] = {}
    for form in ("CSV", "JSON", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save Learning rate as {form}").click()
        found[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    lines = found["learning-rate.csv"].decode().splitlines()
    assert lines[0] == "step,learning rate"
    assert len(lines) == 1 + len(rows) == 1 + STEPS
    assert len(json.loads(found["learning-rate.json"])["rows"]) == STEPS
    assert found["learning-rate.png"].startswith(b"\x89PNG")


def test_checkpoints_are_downloaded(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    page = visitors.page(f"{platform.url}/jobs/{trained}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download LoRA").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"PK")


def test_the_report_opens_from_disk_with_the_network_off(
    platform: Platform, trained: str, visitors: WatchedBrowser, tmp_path: Path
) -> None:
    """One file that asks for nothing and runs nothing, in light and dark and on a phone; strangers' texts are texts.
    The server lets it run nothing either.
    """
    path = tmp_path / "report.html"
    route = f"v1/fine_tuning/jobs/{trained}/artifacts/export/report.html"
    assert platform.api.download_file(f"/{route}", path) == path.stat().st_size
    for size in ({}, PHONE):
        page = visitors.page(path.as_uri(), offline=True, **size)
        expect(page.get_by_role("heading", name="first", level=1)).to_be_visible()
        expect(page.get_by_role("heading", level=3).filter(has_text=HOSTILE.strip())).to_be_visible()
        expect(page).to_have_title(re.compile("^first · succeeded"))
        table = page.get_by_role("region", name="Scores", exact=True)
        expect(table.get_by_role("row").filter(has_text="shapes")).to_contain_text(["0."])
        for title in ("shapes", "Diversity", "Spread within a group", "Loss", "Rate"):
            expect(page.get_by_role("img", name=re.compile(f"^Curve: {title}\\."))).to_be_visible()
        images = page.locator(".cell img")
        expect(images).to_have_count(2 * 2 * 3)  # prompts × noises × (base, step 3, step 6)
        assert images.evaluate_all("images => images.every((image) => image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        run_axe(page, "the report")
    assert set(visitors.asked) == {path.as_uri()}
    visitors.asked.clear()
    told = httpx.get(f"{platform.url}/{route}", trust_env=False)
    assert told.headers["content-type"].startswith("text/html")
    policy = told.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script-src" not in policy
    served = visitors.page(f"{platform.url}/jobs/{trained}")
    with served.expect_popup() as popup:
        served.get_by_role("link", name="Open the report").click()
    expect(popup.value.get_by_role("heading", name="Base against trained")).to_be_visible()


def test_the_gallery_slides_through_the_checkpoints(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    """One slider changes every image at once, by keyboard too; the base stays beside them."""
    page = visitors.page(f"{platform.url}/jobs/{trained}/gallery")
    images = page.locator(".image.now")
    expect(images).to_have_count(4)
    expect(images.first).to_have_attribute("aria-label", re.compile(f"^Step {STEPS}, "))
    shown = images.first.evaluate("element => getComputedStyle(element).backgroundImage")
    page.get_by_role("slider", name="Step").press("ArrowLeft")
    expect(page.locator(".image.now[aria-label^='Step 3, ']")).to_have_count(4)
    assert images.first.evaluate("element => getComputedStyle(element).backgroundImage") != shown
    assert "step=3" in page.url
    page.get_by_text("Swipe", exact=True).click()
    page.get_by_role("slider", name="Swipe: base to the left").press("Home")
    clip = images.first.evaluate("element => getComputedStyle(element).clipPath")
    assert clip.endswith(" 0%)"), clip
    page.get_by_role("button", name="☆ Pin").last.click()
    page.get_by_label("Pinned prompts only").check()
    expect(page.locator(".gallery section:visible")).to_have_count(1)
    assert "pin=1" in page.url
    expect(page.locator(".gallery section:visible .scores").first).to_contain_text("shapes")


def test_groups_show_what_attracted_and_what_repelled(
    platform: Platform, trained: str, visitors: WatchedBrowser
) -> None:
    """In each reward's order, as REST tells it, with an image for every candidate."""
    url = f"{platform.url}/v1/fine_tuning/jobs/{trained}/groups?step=2"
    found = httpx.get(url, trust_env=False).raise_for_status().json()
    group = found["data"][0]
    page = visitors.page(f"{platform.url}/jobs/{trained}/groups?step=2")
    card = page.locator(f"[data-group='{group['group']}']")
    expect(card).to_be_visible()
    for name in ("combined", "shapes", "colourfulness"):
        scores = group["order"]["total"] if name == "combined" else group["rewards"][name]["scores"]
        placed = [int(each) for each in card.locator(f"[data-order='{name}'] li").evaluate_all(
            "items => items.map((item) => item.dataset.candidate)")]  # fmt: skip
        assert sorted(placed) == list(range(6))
        assert [scores[each] for each in placed] == sorted(scores, reverse=True), name
    for role, rows in (("attracts", group["order"]["positives"]), ("repels", group["order"]["negatives"])):
        marked = card.locator(f"[data-order='combined'] li.{role}")
        assert sorted(int(str(each.get_attribute("data-candidate"))) for each in marked.all()) == sorted(rows)
    assert "url(" in card.locator(".tile").first.evaluate("element => getComputedStyle(element).backgroundImage")
    preview = httpx.get(f"{platform.url}/{group['preview']}", trust_env=False)
    assert preview.content[8:12] == b"WEBP"
    card.get_by_text("Table", exact=True).click()
    expect(card.locator("tbody tr")).to_have_count(6)
    expect(card.get_by_text("attracted")).to_have_count(len(group["order"]["positives"]))
    page.get_by_role("button", name="Next step").click()
    expect(page.locator(".groups[data-step='3']")).to_be_visible()


def test_a_job_is_cloned_and_compared(platform: Platform, trained: str, visitors: WatchedBrowser) -> None:
    """The clone differs where it was changed; a link to the comparison shows the same to somebody else."""
    page = visitors.page(f"{platform.url}/jobs/{trained}")
    page.get_by_role("button", name="Clone").click()
    body = json.loads(page.get_by_label("Request as JSON").input_value())
    page.get_by_label("Request as JSON").fill(json.dumps({**body, "steps": 0}))
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("steps")
    page.get_by_label("Request as JSON").fill(json.dumps({**body, "seed": 5, "steps": 3, "suffix": "second"}))
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", name="second", level=1)).to_be_visible()
    clone = HASH.findall(page.url)[0]
    expect(state_of(page, "succeeded")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_label("Difference to").select_option(trained)
    expect(page.locator(".config tbody tr td:first-child")).to_have_text(["seed", "suffix", "steps"])
    compared = visitors.page(f"{platform.url}/compare?jobs={trained},{clone}")
    rows = rows_of(compared, "shapes, training prompts")
    assert len(rows) == STEPS
    assert [cell == "–" for cell in rows[0]] == [False, False, True]  # the clone has fewer steps
    assert rows_of(visitors.page(compared.url), "shapes, training prompts") == rows
    expect(compared.locator("section table tbody tr")).to_have_count(2)


def test_the_form_names_the_wrong_field_and_starts_the_job(platform: Platform, visitors: WatchedBrowser) -> None:
    """It is made of the schema: its fields are REST's, and what is left empty is the server's default."""
    page = visitors.page(f"{platform.url}/new")
    page.get_by_label("Name", exact=True).fill("by-form")
    page.get_by_label("Prompts, one a line", exact=True).fill("a red square\na blue circle\n")
    page.get_by_label("Use shapes").check()
    page.get_by_label("Weight of colourfulness").fill("0")
    page.get_by_label("Steps", exact=True).fill("0")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("steps")
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Steps", exact=True)).to_be_focused()
    page.get_by_label("Steps", exact=True).fill("2000")  # more than pass until it is cancelled
    page.get_by_label("Candidates", exact=True).fill("4")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", name="by-form", level=1)).to_be_visible()
    job = platform.api.get(f"/v1/fine_tuning/jobs/{HASH.findall(page.url)[0]}")
    assert (job["steps"], job["candidates"], job["prompts_per_step"], job["prompt_count"]) == (2000, 4, 8, 2)
    assert {each["name"]: each["weight"] for each in job["rewards"]} == {"shapes": 1.0, "colourfulness": 0.0}
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(state_of(page, "cancelled")).to_be_visible(timeout=PATIENCE_MS)


def test_an_endpoint_that_hangs_is_seen_and_so_is_its_return(
    platform: Platform, trained: str, visitors: WatchedBrowser
) -> None:
    page = visitors.page(f"{platform.url}/endpoints")
    card = page.locator("[data-endpoint='colourfulness']")
    expect(card.locator(".state.up")).to_be_visible()
    expect(card).to_contain_text(re.compile(r"Failures\s*0 %"))
    process = platform.stack.processes["colourfulness"]
    os.kill(process, signal.SIGSTOP)
    try:
        expect(card.locator(".state.down")).to_be_visible(timeout=60_000)
        expect(page.locator("[data-endpoint='shapes'] .state.up")).to_be_visible()
    finally:
        os.kill(process, signal.SIGCONT)
    expect(card.locator(".state.up")).to_be_visible(timeout=60_000)


def test_the_rating_queue_is_beside_its_endpoint(platform: Platform, visitors: WatchedBrowser) -> None:
    """How many groups wait, and the way to the rating service's own page; other rewards have none."""
    raters = platform.stack.raters_url
    httpx.post(f"{raters}/v1/rank", json=group([10, 200], "which is lighter?"), trust_env=False).raise_for_status()
    page = visitors.page(f"{platform.url}/endpoints")
    queue = page.locator("[data-endpoint='people']").get_by_label("Rating queue")
    expect(queue).to_contain_text(re.compile(r"Waiting\s*1\s*the oldest for"))
    expect(page.locator("[data-endpoint='shapes'] .state.up")).to_be_visible()
    expect(page.get_by_label("Rating queue")).to_have_count(1)
    link = queue.get_by_role("link", name="Raters and their gold, invitations, deliveries to send again")
    assert link.get_attribute("href") == f"{raters}/operator"
    link.click()
    expect(page.get_by_role("heading", name="People who rank")).to_be_visible()


def test_a_restart_of_the_api_loses_no_curve_and_no_image(platform: Platform, trained: str, browser: Browser) -> None:
    page = open_browser_page(browser, f"{platform.url}/jobs/{trained}")
    before = rows_of(page, "shapes")
    listing = open_browser_page(browser, platform.url)
    expect(listing.locator("#connection")).to_have_text("live")
    until = time.monotonic() + 60
    while not listing.locator("#connection[data-state='away']").is_visible():  # it may be back before it is asked
        assert time.monotonic() < until
        with suppress(KeyError, ProcessLookupError):
            os.kill(platform.stack.processes["api"], signal.SIGKILL)
        listing.wait_for_timeout(200)
    expect(listing.locator("#connection[data-state='live']")).to_be_visible(timeout=PATIENCE_MS)
    page.reload()
    assert rows_of(page, "shapes") == before
    page.goto(f"{platform.url}/jobs/{trained}/gallery")
    expect(page.locator(".image.now[aria-label^='Step ']")).to_have_count(4)
    for opened in (page, listing):
        opened.context.close()


@pytest.mark.parametrize(
    "way", ["", "jobs/{job}", "jobs/{job}/gallery", "jobs/{job}/groups", "compare?jobs={job}", "endpoints", "new"]
)
@pytest.mark.parametrize("size", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    platform: Platform, trained: str, visitors: WatchedBrowser, way: str, size: dict[str, Any]
) -> None:
    """In light and in dark; nor does a page scroll sideways."""
    page = visitors.page(f"{platform.url}/{way.format(job=trained)}", **size)
    expect(page.locator("main .card:visible").first).to_be_visible()
    expect(page.locator("figure, .group, .jobs tbody tr, [data-endpoint], form").first).to_be_visible()
    for summary in page.get_by_text("Table", exact=True).all():
        summary.click()
    run_axe(page, way)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_key_is_asked_for_once_and_kept_in_the_tab_alone(
    api_server: Any, tmp_path: Path, visitors: WatchedBrowser
) -> None:
    """Also the stream of events sends it, and a wrong one is told."""
    with api_server(tmp_path, API_KEY=KEY) as server:
        headers = {"authorization": f"Bearer {KEY}"}
        body: dict[str, Any] = {
            "prompts": [{"prompt": "a red square"}],
            "rewards": [{"name": "shapes", "url": "http://127.0.0.1:9"}],
        }
        body["allow_unready"] = True
        job = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=body, headers=headers, trust_env=False).json()["id"]
        page = visitors.page(server.url)
        page.get_by_role("textbox", name="Key").fill("a-wrong-key-of-some-length")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know that key")
        page.get_by_role("textbox", name="Key").fill(KEY)
        page.get_by_role("button", name="Go on").click()
        expect(page.locator(f"#{job}")).to_be_visible()
        page.goto(f"{server.url}/jobs/{job}")
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator(".events li").first).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.evaluate("Object.values(localStorage).length") == 0
        assert page.context.cookies() == []
        expect(visitors.page(server.url).get_by_role("textbox", name="Key")).to_be_visible()
        page.close()


@dataclass
class FedJob:
    """A running job whose events a test writes itself."""

    url: str
    id: str
    database: Database

    @property
    def page(self) -> str:
        return f"{self.url}/jobs/{self.id}"

    def add_steps(self, first: int, last: int, **figures: float) -> None:
        with self.database.writing() as session:
            for step in range(first, last + 1):
                data = {"step": step, "steps": 20_000, "loss": 1 / step, "rewards": {"shapes": 0.5}, "lr": 1e-3,
                        "spread": {"shapes": 0.1}, "seconds": {"generate": 1.0}, "eta_s": 9.0, **figures}  # fmt: skip
                session.add(EventRow(job_id=self.id, created_at=1.8e9 + step, kind="step", level="info",
                                     message=f"Step {step}", data=data))  # fmt: skip


@pytest.fixture(scope="module")
def feed_job(api_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], FedJob]]:
    """Makes jobs on an API without workers."""
    folder = tmp_path_factory.mktemp("fed")
    with api_server(folder) as server:
        database = Database(f"sqlite:///{folder}/jobs.db")

        def create_job() -> FedJob:
            rewards = [{"name": name, "url": "http://127.0.0.1:9"} for name in ("shapes", "colourfulness")]
            body = {"prompts": [{"prompt": "a red square"}], "rewards": rewards, "allow_unready": True, "steps": 20_000}
            made = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=body, trust_env=False).raise_for_status()
            assert JobStore(database).claim_job("worker", 3600) is not None
            return FedJob(server.url, made.json()["id"], database)

        yield create_job
        database.close()


def test_events_are_asked_for_where_no_stream_comes_through(
    feed_job: Callable[[], FedJob], visitors: WatchedBrowser
) -> None:
    """A proxy ends each stream before its first byte; every event is shown all the same, and once."""
    job = feed_job()
    context = visitors.context()
    context.route("**/stream", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=""))
    page = context.new_page()
    page.goto(job.page)
    expect(page.locator("#connection")).to_have_text("polling", timeout=PATIENCE_MS)
    for last in (150, 152):  # more than a page of them, and then a few
        job.add_steps(last - 1 if last == 152 else 1, last)
        expect(page.locator(".events li").first).to_have_text(re.compile(rf"Step {last}$"), timeout=PATIENCE_MS)
    steps = [int(each.split()[-1]) for each in page.locator(".events [data-kind='step']").all_inner_texts()]
    assert steps == [*range(152, 0, -1)]
    assert rows_of(page, "Learning rate")[0][0] == "152"


def test_a_hidden_tab_closes_its_stream_and_catches_up_when_it_is_shown(
    feed_job: Callable[[], FedJob], visitors: WatchedBrowser
) -> None:
    """It goes on after the last event that it saw, and shows each once."""
    job = feed_job()
    page = visitors.page("about:blank")
    cursors = list[str | None]()

    def keep_cursor(request: Request) -> None:
        if request.url.endswith("/stream"):
            cursors.append(request.headers["last-event-id"])

    page.on("request", keep_cursor)
    page.goto(job.page)
    expect(page.locator("#connection")).to_have_text("live", timeout=PATIENCE_MS)  # so the steps come by the stream
    job.add_steps(1, 3)
    newest = page.locator(".events li").first
    expect(newest).to_contain_text("Step 3", timeout=PATIENCE_MS)
    seen = str(newest.get_attribute("data-event")).removeprefix("ftevent-")

    def turn(hidden: bool) -> None:
        page.evaluate(
            """(hidden) => {
              Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
              document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    turn(hidden=True)
    expect(page.locator("#connection")).to_have_text("paused while hidden")
    until = time.monotonic() + 60
    while ended_streams(job.url) == 0:  # the server counts a stream once it is over
        assert time.monotonic() < until
        time.sleep(0.1)
    asked = len(visitors.asked)
    job.add_steps(4, 8)
    page.wait_for_timeout(1500)  # longer than the server takes to tell those who listen
    assert len(visitors.asked) == asked
    expect(newest).to_contain_text("Step 3", timeout=PATIENCE_MS)
    turn(hidden=False)
    expect(newest).to_contain_text("Step 8", timeout=PATIENCE_MS)
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator(".events [data-kind='step']")).to_have_count(8)
    assert cursors[-1] == seen


def test_a_tiny_decoder_s_agreement_has_a_chart_of_its_own(
    feed_job: Callable[[], FedJob], visitors: WatchedBrowser
) -> None:
    """Of the steps that compared, and of jobs that do; the losses beside it are losses alone."""
    job = feed_job()
    job.add_steps(1, 2)
    job.add_steps(3, 3, decoder_tau=0.9, decoder_overlap=0.75)
    page = visitors.page(job.page)
    assert rows_of(page, "Tiny decoder against the VAE") == [["3", "0.9", "0.75"]]
    assert [len(row) for row in rows_of(page, "Loss and its drifts")] == [2, 2, 2]
    other = feed_job()
    other.add_steps(1, 1)
    page = visitors.page(other.page)
    rows_of(page, "Loss and its drifts")
    expect(page.get_by_role("figure", name="Tiny decoder against the VAE")).to_have_count(0)


def test_the_form_of_weights_sends_what_was_typed_and_leaves_others_changes_alone(
    feed_job: Callable[[], FedJob], visitors: WatchedBrowser
) -> None:
    """Two people change a weight each, and one types on while a change is under way: nothing is put back or lost."""
    job = feed_job()
    address = f"{job.url}/v1/fine_tuning/jobs/{job.id}"
    page = visitors.page(job.page)
    weights = page.get_by_role("region", name="Weights")
    shapes, colourfulness = (weights.get_by_label(name) for name in ("shapes", "colourfulness"))
    change = weights.get_by_role("button", name="Change the weights")
    change.click()
    expect(weights.get_by_role("alert")).to_contain_text("nothing to send")
    shapes.fill("2")
    changed = httpx.patch(f"{address}/rewards", json={"weights": {"colourfulness": 0.5}}, trust_env=False)
    changed.raise_for_status()
    held = list[Route]()
    page.route("**/rewards", lambda route: held.append(route))
    with page.expect_request("**/rewards") as sent:
        change.click()
    assert sent.value.post_data_json == {"weights": {"shapes": 2}}
    shapes.fill("3")
    with page.expect_response("**/rewards"):
        held.pop().continue_()
    expect(change).to_be_enabled()
    expect(weights.get_by_role("alert")).to_be_hidden()
    expect(colourfulness).to_have_value("0.5")  # what others changed is shown, and what is typed stays
    expect(shapes).to_have_value("3")
    page.unroute("**/rewards")
    with page.expect_request("**/rewards") as sent:
        change.click()
    assert sent.value.post_data_json == {"weights": {"shapes": 3}}
    expect(change).to_be_enabled()
    told = httpx.get(address, trust_env=False).json()["weight_changes"]
    assert [each["weights"] for each in told] == [{"colourfulness": 0.5}, {"shapes": 2}, {"shapes": 3}]


@pytest.mark.parametrize(
    ("ending", "step", "said", "hint"),
    [
        ("running", 1, "from the next step on", True),
        ("running", 20_000, "from the next step on", False),
        ("failed", 1, "from the next step on", False),
        ("cancelled", 1, "which no step began with", False),
    ],
)
def test_a_change_is_said_to_wait_while_a_step_may_begin(
    ending: str, step: int, said: str, hint: bool, feed_job: Callable[[], FedJob], visitors: WatchedBrowser
) -> None:
    """A failed job can be resumed, and its next step begins with it."""
    job = feed_job()
    address = f"{job.url}/v1/fine_tuning/jobs/{job.id}"
    httpx.patch(f"{address}/rewards", json={"weights": {"shapes": 2}}, trust_env=False).raise_for_status()
    with job.database.writing() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(state=ending, step=step))
    page = visitors.page(job.page)
    weights = page.get_by_role("region", name="Weights")
    expect(weights.get_by_role("listitem")).to_contain_text(said)
    expect(weights.get_by_text("A change waits for the next step to begin.")).to_have_count(int(hint))


def ended_streams(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    counts = [line for line in lines if line.startswith("dipole_api_requests_total") and "/stream" in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_ten_thousand_events_do_not_make_a_page_grow(feed_job: Callable[[], FedJob], visitors: WatchedBrowser) -> None:
    """Rows are capped and curves thinned, while every event passes by; nor does the heap keep what is not shown."""
    job = feed_job()
    job.add_steps(1, 1000)
    page = visitors.page(job.page)
    rows_of(page, "Learning rate")

    def add_until(last: int) -> tuple[int, int]:
        """Elements, and bytes of the heap once garbage is gone."""
        for start in range(1001 if last < 5000 else 3401, last, 2000):
            job.add_steps(start, min(last, start + 1999))
        expect(page.locator(".events li").first).to_have_text(re.compile(rf"Step {last}$"), timeout=PATIENCE_MS)
        last_row = page.get_by_role("figure", name="Learning rate").locator("tbody th").first
        expect(last_row).to_have_text(f"{last:,}".replace(",", "\u202f"))
        devtools = page.context.new_cdp_session(page)
        devtools.send("HeapProfiler.collectGarbage")
        heap = int(devtools.send("Runtime.getHeapUsage")["usedSize"])
        devtools.detach()
        return page.evaluate("document.querySelectorAll('*').length"), heap

    elements, heap = add_until(3400)
    more_elements, more_heap = add_until(13_400)
    assert page.locator(".events li").count() <= 200
    assert more_elements < elements + 100
    told = page.get_by_role("figure", name="Learning rate").get_by_text(re.compile("The newest 100 of")).inner_text()
    assert int(re.findall(r"of (\d+) rows", told)[0]) <= 2000  # the points behind a curve
    assert more_heap < heap + 3_000_000  # 10 000 events are 20 MB as the page reads them
