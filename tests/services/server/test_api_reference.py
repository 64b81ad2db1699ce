"""A reward service's API reference: the page is there for everybody, what it shows for whoever has the key."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.anyio
KEY = "a-key-of-some-length"


async def test_what_the_page_shows_needs_the_key(serve: Any) -> None:
    async with serve(reward_key=KEY) as client:
        for path in ("/docs", "/docs/page.js", "/docs/style.css"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/docs/content", "/openapi.json", "/v1/info"):
            assert (await client.get(path)).status_code == 401, path
        shown = await client.get("/docs/content", headers={"authorization": f"Bearer {KEY}"})
        assert "DIPOLE_REWARD_KEY" in shown.text
        assert "POST</span> <code>/v1/rank</code>" in shown.text


async def test_without_a_key_all_of_it_is_open_but_to_pages_of_other_sites(serve: Any) -> None:
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "origin": "http://evil.example"}
    async with serve() as client:
        assert "wants a key" not in (await client.get("/docs/content")).text
        for path in ("/docs", "/docs/content"):
            assert (await client.get(path, headers=foreign)).status_code == 403, path
