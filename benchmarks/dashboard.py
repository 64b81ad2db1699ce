"""How long the dashboard's pages take to open as a platform's history grows, what open event streams cost, and how
soon an endpoint that died is seen.

    python benchmarks/dashboard.py
    python benchmarks/dashboard.py --opens 9 --streams 500 --json out/dashboard.json

Three histories are made in a temporary folder, rows and images in bulk and jobs through the store:

    10 jobs      each with --events events and --sheets sheets of samples
    200 jobs     the same of each: 100,000 events and 10,000 sheets
    one long     10 jobs, of which the one that is opened has all of the 100,000 events and 10,000 sheets

Over each runs a stack of our own processes (Redis, a reward, the rank worker, the API; no worker, as every job has
ended or pauses). Chromium opens each page in a fresh context, and what is timed is from the navigation to the moment
that what the page is for is on it: rows with figures, curves, images. Printed: medians, and their ratios to 10 jobs.

Streams: --streams of them are opened, each of a paused job, and `/readyz` is asked over one connection meanwhile; first
while nothing happens, then while each of twenty jobs gets an event a second, then while one job that all of them follow
does. The script and its Chromium share the machine with the API, as an operator's browser may.

Endpoints: the page of them is open while one is killed with kill -9, and another frozen with SIGSTOP, at moments that
have nothing to do with its probes; printed are the seconds until the page says that it does not answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import func, insert, select, update

from dipole.stack.ports import reserve_port
from dipole.stack.stack import EMBEDDED_REWARDS, Stack
from dipole.tiny.job import build_demo_prompts
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import CheckpointRow, EventRow, JobRow, RankedGroupRow, RankingRow
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout

CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
BEGAN = 1.78e9  # Unix seconds
CANDIDATES = 8
CELL = 64  # pixels of an image in a sheet
ROWS, COLUMNS = 4, 4
BULK = 2000
NAME = "shapes"
PATIENCE_MS = 120_000

# page -> (path, what is there once it has opened)
HAS_FIGURES = "document.querySelectorAll('figure tbody, figure .legend .value').length > 5"
PAGES = {
    "jobs": (
        "",
        "document.querySelectorAll('.jobs tbody tr').length >= 10 &&"
        " [...document.querySelectorAll('.jobs tbody tr')].every((row) => row.querySelector('.figures'))",
    ),
    "job": (
        "jobs/{job}",
        f"{HAS_FIGURES} && document.querySelectorAll('.events li').length > 5 &&"
        " document.querySelector('#connection').textContent === 'job has ended' && document.querySelector('#other')",
    ),
    "gallery": (
        "jobs/{job}/gallery",
        "document.querySelector('.gallery[data-step]') && document.querySelector('.scores span')",
    ),
    "groups": ("jobs/{job}/groups", "document.querySelector('.group tbody')"),
    "an old step's groups": ("jobs/{job}/groups?step=3", "document.querySelector('.group tbody')"),
    "compare": (
        "compare?jobs={job},{other}",
        f"{HAS_FIGURES} && document.querySelectorAll('section table tbody tr').length === 2",
    ),
    "endpoints": ("endpoints", "document.querySelector('.state.up')"),
    "new": ("new", "document.querySelector('form input')"),
}


@dataclass(frozen=True)
class History:
    """`events` and `sheets` of each job; the first, which is opened, may have more of its own."""

    name: str
    jobs: int
    events: int
    sheets: int
    first_events: int | None = None
    first_sheets: int | None = None

    def of_job(self, index: int) -> tuple[int, int]:
        if index == 0:
            return self.first_events or self.events, self.first_sheets or self.sheets
        return self.events, self.sheets


# ---- histories ----


def make_history(history: History, database: Database, artifacts: Path) -> list[str]:
    """The ids of its jobs, the one that is opened first."""
    store, ids = JobStore(database), list[str]()
    for index in range(history.jobs):
        events, sheets = history.of_job(index)
        spec = make_spec(seed=index, steps=events)
        job_id = store.create_job(spec, extra={"suffix": f"run-{index}", "metadata": None, "warnings": []}).id
        ids.append(job_id)
        with database.writing() as session:
            ended = {"state": "succeeded", "step": events, "started_at": BEGAN, "finished_at": BEGAN + 2 * events}
            session.execute(update(JobRow).where(JobRow.id == job_id).values(created_at=BEGAN, **ended))
        add_events(database, job_id, events, sheets)
        add_groups(database, job_id, events)
        write_samples(artifacts / job_layout.job_path(job_id), events, sheets)
    return ids


def make_spec(seed: int, steps: int) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "model": "tiny-turbo",
            "features": {"type": "tiny_contrastive"},
            "prompts": build_demo_prompts(held_out=False),
            "rewards": [{"name": NAME}, {"name": "colourfulness", "weight": 0.0}],
            "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}},
            "steps": steps,
            "candidates": CANDIDATES,
            "seed": seed,
        }
    )


def add_events(database: Database, job_id: str, events: int, sheets: int) -> None:
    """A step each, and for every sheet an evaluation and its samples; a skipped group now and then."""
    every = max(1, events // sheets)
    rows = list[dict[str, Any]]()
    for step in range(1, events + 1):
        rows.append(
            event_row(job_id, step, "step", f"Step {step}/{events}: training loss 0.1", step_data(step, events))
        )
        if step % every == 0:
            rows.append(event_row(job_id, step, "evaluation", f"Evaluation at step {step}", evaluation_data(step)))
            rows.append(event_row(job_id, step, "samples", f"Samples at step {step}", {"step": step, "path": "x"}))
        if step % 20 == 0:
            data = {"step": step, "group": f"{step}.0", "reason": "every score is the same"}
            rows.append(event_row(job_id, step, "skipped_group", "A group was skipped", data, level="warn"))
    rows.append(event_row(job_id, events, "succeeded", "The job has succeeded", {}))
    insert_rows(database, EventRow, rows)
    kept = range(max(1, events - 40), events + 1, 10)
    insert_rows(
        database,
        CheckpointRow,
        [
            {"id": f"ftckpt-{job_id[-12:]}{step:012}", "job_id": job_id, "step": step, "metrics": {},
             "path": f"checkpoint-{step}", "created_at": BEGAN + step}
            for step in kept
        ],
    )  # fmt: skip


def event_row(job_id: str, step: int, kind: str, message: str, data: Any, *, level: str = "info") -> dict[str, Any]:
    return {"job_id": job_id, "created_at": BEGAN + 2 * step, "kind": kind, "level": level, "message": message,
            "data": data}  # fmt: skip


def step_data(step: int, steps: int) -> dict[str, Any]:
    return {
        "step": step, "steps": steps, "loss": 1 / step, "drift_pref": 0.5 / step, "drift_ref": 0.2 / step,
        "rewards": {NAME: 1 - 1 / step, "colourfulness": 0.3}, "spread": {NAME: 0.1, "colourfulness": 0.05},
        "lr": 1e-4, "images_per_s": 31.7, "seconds": {"generate": 0.5, "wait": 0.2, "update": 1.3},
        "skipped": 0, "not_finite": 0, "staleness": 0, "eta_s": 2.0 * (steps - step),
    }  # fmt: skip


def evaluation_data(step: int) -> dict[str, Any]:
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "difference": {"mean": 0.1, "low": 0.05, "high": 0.15}}
    scores = {NAME: interval, "colourfulness": interval}
    diversities = {"distance": interval, "Vendi": interval}
    return {"step": step, "path": f"evaluation/step-{step}.json", "scores": scores, "diversities": diversities,
            "diversity_ratio": 0.9}  # fmt: skip


def add_groups(database: Database, job_id: str, steps: int) -> None:
    """A group a step, which two rewards ranked."""
    with database.writing() as session:
        first = 1 + (session.query(RankedGroupRow.seq).order_by(RankedGroupRow.seq.desc()).limit(1).scalar() or 0)
    groups = [
        {"seq": first + step, "job_id": job_id, "group_id": f"{step}.0", "step": step, "prompt": "a red square",
         "prompt_metadata": None, "seeds": list(range(CANDIDATES)), "candidates": ["0" * 64] * CANDIDATES,
         "created_at": BEGAN + step}
        for step in range(steps)
    ]  # fmt: skip
    scores = [each / CANDIDATES for each in range(CANDIDATES)]
    rankings: list[dict[str, Any]] = [
        {"group_seq": group["seq"], "reward": reward, "scores": scores, "sub_scores": {}, "errors": {},
         "failure": None, "model": reward, "model_revision": "1", "recipe_version": "1", "seconds": 0.01,
         "created_at": BEGAN}
        for group in groups
        for reward in (NAME, "colourfulness")
    ]  # fmt: skip
    insert_rows(database, RankedGroupRow, groups)
    insert_rows(database, RankingRow, rankings)


def insert_rows(database: Database, table: Any, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), BULK):
        with database.writing() as session:
            session.execute(insert(table), rows[start : start + BULK])


def write_samples(folder: Path, events: int, sheets: int) -> None:
    """A sheet of ROWS prompts and COLUMNS noises each, and what each image was scored with."""
    every = max(1, events // sheets)
    sheet, scores = make_sheet(), json.dumps({"prompts": [{"scores": {NAME: [0.5] * COLUMNS}}] * ROWS})
    for name in ("samples", "evaluation", "export"):
        (folder / name).mkdir(parents=True)
    prompts = {"prompts": [f"prompt {row}" for row in range(ROWS)], "width": CELL, "height": CELL}
    (folder / "samples/prompts.json").write_text(json.dumps(prompts))
    for step in range(every, events + 1, every):
        (folder / f"samples/step-{step}.png").write_bytes(sheet)
        (folder / f"evaluation/step-{step}.json").write_text(scores)
    (folder / "export/README.md").write_text("A model card.")


def make_sheet() -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((COLUMNS * CELL, ROWS * CELL)).convert("RGB").save(file, "PNG")
    return file.getvalue()


# ---- a platform over one of them ----


@contextlib.contextmanager
def running_platform(history: History) -> Iterator[tuple[str, list[str], Database]]:
    """(the API's address, the jobs' ids, the database)."""
    with tempfile.TemporaryDirectory(prefix="dashboard-") as folder:
        home = Path(folder)
        stack = Stack(home, EMBEDDED_REWARDS[:1], worker=False)
        environment = stack.environment()
        upgrade_database(environment["DIPOLE_DATABASE_URL"])
        database = Database(environment["DIPOLE_DATABASE_URL"])
        began = time.monotonic()
        ids = make_history(history, database, Path(environment["DIPOLE_ARTIFACTS_URL"]))
        print(f"{history.name}: made in {time.monotonic() - began:.0f} s", flush=True)
        with stack:
            yield stack.api_url, ids, database
        database.close()


def open_pages(browser: Browser, url: str, ids: list[str], opens: int) -> dict[str, dict[str, float]]:
    """Of each page the median milliseconds until it was there, its requests, and the kilobytes of their answers."""
    found = {}
    for name, (path, ready) in PAGES.items():
        address = f"{url}/{path.format(job=ids[0], other=ids[1])}"
        open_page(browser, address, ready)  # the API's own first time
        opened = [open_page(browser, address, ready) for _ in range(opens)]
        found[name] = {key: statistics.median(each[key] for each in opened) for key in opened[0]}
    return found


def open_page(browser: Browser, address: str, ready: str) -> dict[str, float]:
    # Playwright waits by eval, which our policy forbids
    context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    try:
        page = context.new_page()
        page.goto(address, wait_until="commit")
        page.wait_for_function(ready, timeout=PATIENCE_MS)
        return {"ms": page.evaluate("performance.now()"), **_measure_transfers(page)}
    finally:
        context.close()


def _measure_transfers(page: Page) -> dict[str, float]:
    entries = page.evaluate("performance.getEntriesByType('resource').map((each) => [each.name, each.decodedBodySize])")
    asked = [(name, size) for name, size in entries if "/v1/" in name]
    return {"requests": len(asked), "kB": sum(size for _, size in asked) / 1000}


# ---- streams ----


@contextlib.contextmanager
def held_streams(url: str, jobs: list[str], count: int, *, after: int) -> Iterator[dict[str, int]]:
    """Open streams after an event, from a thread that reads whatever comes; `bytes` of it are counted."""
    opened, stop, received = threading.Event(), threading.Event(), {"bytes": 0}
    host, port = urlsplit(url).hostname, urlsplit(url).port

    async def open_stream(job: str) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(host, port)
        path = f"/v1/fine_tuning/jobs/{job}/stream"
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nlast-event-id: {after}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        writers.append(writer)
        return reader

    async def read(reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(65536):
            received["bytes"] += len(chunk)

    async def hold() -> None:
        tasks = [asyncio.create_task(read(await open_stream(jobs[index % len(jobs)]))) for index in range(count)]
        opened.set()
        while not stop.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    writers = list[asyncio.StreamWriter]()  # or they would be closed as garbage
    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert opened.wait(120), "the streams did not open"
        yield received
    finally:
        stop.set()
        thread.join()


def time_readyz(url: str, seconds: float) -> dict[str, float]:
    times = list[float]()
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        http.get("/readyz").raise_for_status()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            http.get("/readyz").raise_for_status()
            times.append(1000 * (time.perf_counter() - began))
            time.sleep(0.01)
    cuts = statistics.quantiles(times, n=100)
    return {"p50": cuts[49], "p99": cuts[98], "most": max(times), "asked": len(times)}


def measure_streams(url: str, ids: list[str], database: Database, streams: int, seconds: float) -> dict[str, Any]:
    with database.writing() as session:
        session.execute(update(JobRow).values(state="paused", desired="pause"))
    found: dict[str, Any] = {"none open": time_readyz(url, seconds)}
    for name, followed, fed in (
        ("open, nothing happens", ids, []),
        ("twenty jobs with an event a second", ids[:20], ids[:20]),
        ("one job with an event a second", ids[:1], ids[:1]),
    ):
        with database.reading() as session:
            newest = session.scalar(select(func.max(EventRow.id))) or 0
        with held_streams(url, followed, streams, after=newest) as received, fed_jobs(database, fed):
            time.sleep(2)
            found[name] = time_readyz(url, seconds)
            found[name]["kB read"] = received["bytes"] / 1000
        print(f"  {name}: {_show(found[name])}", flush=True)
    return found


@contextlib.contextmanager
def fed_jobs(database: Database, jobs: list[str]) -> Iterator[None]:
    """Each of the jobs gets an event a second."""
    stop = threading.Event()

    def feed() -> None:
        step = 1_000_000
        while jobs and not stop.wait(1.0 / len(jobs)):
            row = event_row(jobs[step % len(jobs)], step, "step", f"Step {step}", step_data(step, 2 * step))
            insert_rows(database, EventRow, [row])
            step += 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# ---- endpoints ----


@contextlib.contextmanager
def running_endpoint(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A reward that nobody starts again."""
    command = [sys.executable, "-m", "dipole.cli", "rewards", "serve", EMBEDDED_REWARDS[1].plugin, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure_deaths(browser: Browser, times: int) -> dict[str, list[float]]:
    """Seconds until the page says that a killed endpoint, and a frozen one, does not answer."""
    found: dict[str, list[float]] = {"killed": [], "frozen": []}
    with (
        reserve_port() as port,
        tempfile.TemporaryDirectory(prefix="dashboard-") as home,
        Stack(Path(home), EMBEDDED_REWARDS[:1], worker=False) as stack,
    ):
        body = {"name": "mortal", "url": f"http://127.0.0.1:{port}"}
        httpx.post(f"{stack.api_url}/v1/rewards", json=body, trust_env=False).raise_for_status()
        page = browser.new_context(bypass_csp=True).new_page()
        page.goto(f"{stack.api_url}/endpoints")
        card = page.locator("[data-endpoint='mortal']")
        for _ in range(times):
            for kind, blow in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
                with running_endpoint(port) as process:
                    card.locator(".state.up").wait_for(timeout=PATIENCE_MS)
                    time.sleep(random.uniform(0, 5))
                    process.send_signal(blow)
                    began = time.monotonic()
                    card.locator(".state.down").wait_for(timeout=PATIENCE_MS)
                    found[kind].append(time.monotonic() - began)
    return found


# ---- all of it ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500, help="steps of each job")
    parser.add_argument("--sheets", type=int, default=50, help="sheets of samples of each job")
    parser.add_argument("--many", type=int, default=200, help="jobs of the large history")
    parser.add_argument("--opens", type=int, default=5, help="times that each page is opened")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10, help="of asking /readyz in each case")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--deaths", type=int, default=8, help="times that an endpoint is killed, and frozen")
    parser.add_argument("--only", choices=["pages", "streams", "deaths"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.update({"DIPOLE_API_MAX_STREAMS": str(min(1000, 2 * args.streams)), "OMP_NUM_THREADS": "1"})
    many, each = args.many, (args.events, args.sheets)
    few, large = History("10 jobs", 10, *each), History(f"{many} jobs", many, *each)
    long = History("one long", 10, *each, many * args.events, many * args.sheets)
    parts = [args.only] if args.only else ["pages", "streams", "deaths"]
    pages, streams, deaths = {}, {}, {}
    if "pages" in parts:
        for history in (few, large, long):
            with running_platform(history) as (url, ids, _), sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=args.chromium, args=CHROMIUM_FLAGS)
                pages[history.name] = open_pages(browser, url, ids, args.opens)
                browser.close()
        print_pages(pages)
    if "streams" in parts:
        with running_platform(large) as (url, ids, database):
            streams = measure_streams(url, ids, database, args.streams, args.seconds)
        print_streams(streams, args.streams)
    if "deaths" in parts:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.chromium, args=CHROMIUM_FLAGS)
            deaths = measure_deaths(browser, args.deaths)
            browser.close()
        for kind, seconds in deaths.items():
            print(f"{kind} endpoint seen after {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "chromium")}
        args.json.write_text(
            json.dumps({"settings": settings, "pages": pages, "streams": streams, "deaths": deaths}, indent=1)
        )


def print_pages(pages: dict[str, dict[str, dict[str, float]]]) -> None:
    first = next(iter(pages.values()))
    print(f"{'':22}" + "".join(f"{name:>38}" for name in pages))
    for page in PAGES:
        cells = [
            f"{found[page]['ms']:7.0f} ms ({found[page]['ms'] / first[page]['ms']:.2f}),"
            f"{found[page]['requests']:4.0f} asked,{found[page]['kB']:6.0f} kB"
            for found in pages.values()
        ]
        print(f"{page:22}" + "".join(f"{cell:>38}" for cell in cells))


def print_streams(streams: dict[str, Any], count: int) -> None:
    print(f"/readyz with {count} streams, milliseconds:")
    for name, found in streams.items():
        print(f"  {name:38} {_show(found)}")


def _show(found: dict[str, float]) -> str:
    return f"p50 {found['p50']:.1f}, p99 {found['p99']:.1f}, most {found['most']:.1f} of {found['asked']:.0f}"


if __name__ == "__main__":
    main()
