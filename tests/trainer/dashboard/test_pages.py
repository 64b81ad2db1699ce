"""The dashboard's routes: pages and files that hold no data, allow nothing from elsewhere, and need no key."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole_trainer.dashboard import pages
from dipole_trainer.dashboard.pages import PAGES, Page

from ...prefix_proxy import serve_below

STATIC = Path(str(resources.files(pages.__package__) / "static"))
KEY = "an-admin-key-of-some-length"
WAYS = [page.path.replace("{job_id}", "ftjob-1") for page in PAGES]


def get(url: str, **more: Any) -> httpx.Response:
    return httpx.get(url, trust_env=False, **more)


@pytest.mark.parametrize("way", WAYS)
def test_each_page_is_served_with_a_policy_that_allows_nothing_from_elsewhere(api: Any, way: str) -> None:
    answer = get(api.url + way)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_a_page_has_no_inline_script_or_style_and_names_no_host(page: Page) -> None:
    text = pages.render_page(page)
    assert "://" not in text
    assert re.findall(r"<style|style=|\son\w+=|<script(?![^>]* src=)", text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_what_a_page_loads_is_there(api: Any, page: Page) -> None:
    """By its relative address, as a browser resolves it, and with all that its modules import."""
    base = httpx.URL(api.url + page.path.replace("{job_id}", "ftjob-1"))
    loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="([^"]+)"', pages.render_page(page))
    left, seen = [base.join(each) for each in loaded], set()
    while left:
        url = left.pop()
        if str(url) in seen:
            continue
        seen.add(str(url))
        answer = get(str(url))
        assert answer.status_code == 200, url
        if url.path.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")
            left += [url.join(each) for each in re.findall(r'(?:from|import) "(\.[^"]+)"', answer.text)]
    assert len(seen) > 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_its_links_lead_to_pages(page: Page) -> None:
    base = httpx.URL("http://127.0.0.1:8400" + page.path.replace("{job_id}", "ftjob-1"))
    links = re.findall(r'<a[^>]* href="([^"#]+)"', pages.render_page(page))
    assert len(links) > 1
    assert all(pages.is_page_path(base.join(each).path) for each in links)


def test_below_a_path_prefix_pages_and_files_are_found(api: Any) -> None:
    """A proxy adds a prefix of which the API knows nothing."""
    with serve_below(api.url, "/team/trainer") as base:
        for way in ("", "jobs/ftjob-1"):
            url = httpx.URL(f"{base}/{way}")
            text = get(str(url)).raise_for_status().text
            for each in re.findall(r'(?:src|href)="([^"#]+)"', text):
                assert get(str(url.join(each))).status_code == 200, each


def test_pages_and_files_need_no_key_and_what_they_show_does(api_server: Any, tmp_path: Path) -> None:
    with api_server(tmp_path, API_KEY=KEY) as server:
        for way in (*WAYS, "/static/dashboard.css", "/docs", "/docs/page.js", "/docs/style.css"):
            assert get(server.url + way).status_code == 200, way
        for way in (
            "/v1/fine_tuning/jobs",
            "/v1/fine_tuning/jobs/ftjob-1/metrics",
            "/v1/rewards",
            "/openapi.json",
            "/docs/content",
        ):
            assert get(server.url + way).status_code == 401, way


def test_a_page_of_another_site_gets_nothing_where_there_is_no_key(api: Any) -> None:
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "origin": "http://evil.example"}
    for way in ("/", "/static/api.js", "/docs", "/docs/content"):
        assert get(api.url + way, headers=foreign).status_code == 403


@pytest.mark.parametrize(
    "name", ["none.js", "../pages.py", "..%2fpages.py", "vendor", "vendor/README.md", "", "%00", "a" * 3000]
)
def test_what_is_no_static_file_is_not_there(api: Any, name: str) -> None:
    """Nor is what lies beside them: files are named in memory, and no path is put together."""
    assert get(f"{api.url}/static/{name}").status_code in (400, 404, 414)


def test_a_file_that_is_known_is_not_sent_again(api: Any) -> None:
    first = get(f"{api.url}/static/dashboard.css")
    again = get(f"{api.url}/static/dashboard.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.head(f"{api.url}/static/dashboard.css", trust_env=False).status_code == 200


def test_pages_are_not_in_the_openapi_document(api: Any) -> None:
    paths = get(f"{api.url}/openapi.json").json()["paths"]
    assert "/v1/fine_tuning/jobs" in paths
    assert [path for path in paths if pages.is_page_path(path)] == []


def test_vendored_files_are_what_their_page_says() -> None:
    """Version, licence and hash of each are beside them, and none is changed."""
    text = (STATIC / "vendor/README.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([\d.]+) \| MIT .*\| `([0-9a-f]{64})` \|$", text, flags=re.MULTILINE)
    named = {name: digest for name, _, digest in rows}
    present = {each.name for each in (STATIC / "vendor").iterdir()} - {"README.md", "uplot.LICENSE.txt"}
    assert named.keys() == present
    for name, digest in named.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_our_modules_name_no_other_host_and_make_no_markup_from_text() -> None:
    """`innerHTML` is read, and never written; SVG's namespace is a name."""
    unwanted = r"https?://|innerHTML\s*[+]?=[^=]|outerHTML|insertAdjacentHTML|document\.write|\beval\("
    for path in STATIC.glob("*.js"):
        assert re.findall(unwanted, path.read_text().replace("http://www.w3.org/2000/svg", "")) == [], path


def test_metrics_of_a_job_come_over_rest(api: Any) -> None:
    body = {"prompts": [{"prompt": "a red square"}], "rewards": [{"name": "shapes"}], "allow_unready": True}
    jobs = f"{api.url}/v1/fine_tuning/jobs"
    job = httpx.post(jobs, json=body, trust_env=False).raise_for_status().json()["id"]
    found = get(f"{jobs}/{job}/metrics").raise_for_status().json()
    assert found["steps"] == {"total": 0, "every": 1, "data": []}
    assert found["cursor"] > 0
    assert get(f"{jobs}/none/metrics").status_code == 404
    assert get(f"{jobs}/{job}/metrics?points=0").status_code == 422
    assert get(f"{jobs}/{job}/metrics?point=9").status_code == 422
