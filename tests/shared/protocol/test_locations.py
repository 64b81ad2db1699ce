"""Where a pending ranking is said to be, and which of these places are the endpoint's own."""

from __future__ import annotations

import pytest

from dipole.protocol.locations import resolve_location

BASE = "https://h.example/team/reward"


@pytest.mark.parametrize(
    "location",
    [
        "rankings/r1",
        "./rankings/r1",
        "/team/reward/v1/rankings/r1",
        "/v1/rankings/r1",
        "https://h.example/team/reward/v1/rankings/r1",
        "https://H.example:443/v1/rankings/r1",
        "//h.example/v1/rankings/r1",
        "/v1/rankings/r1#part",
    ],
)
def test_a_place_on_the_endpoint_is_found_below_its_base(location: str) -> None:
    """Relative as HTTP says; a path that only a server behind the prefix can mean is put below it."""
    assert resolve_location(location, BASE) == f"{BASE}/v1/rankings/r1"


def test_without_a_prefix_and_with_a_port() -> None:
    """The same endpoint written with and without its default port, and a query that is kept."""
    assert resolve_location("/v1/rankings/r1?a=b", "http://h:80") == "http://h/v1/rankings/r1?a=b"
    assert resolve_location("http://h:8401/x", "http://h:8401") == "http://h:8401/x"


def test_nothing_beside_the_base_is_ever_asked() -> None:
    """Another service of the same gateway is none of the endpoint's places, however its path is written."""
    for location in ("/other/v1/rankings/r1", "../../../other/x", "/team/rewards/x", "/team/reward/../../other/x"):
        found = resolve_location(location, BASE)
        assert found is None or found.startswith(f"{BASE}/")
        assert ".." not in (found or "")


@pytest.mark.parametrize(
    "location",
    [
        "http://h.example/team/reward/v1/rankings/r1",
        "https://evil.example/v1/rankings/r1",
        "https://h.example:444/v1/rankings/r1",
        "https://user@h.example/v1/rankings/r1",
        "//evil.example/x",
        "http://[x/",
        "file:///etc/passwd",
        "/v1/rankings/\x01",
    ],
)
def test_a_place_elsewhere_is_none(location: str) -> None:
    """Another scheme, host or port, a user, and what is no URL."""
    assert resolve_location(location, BASE) is None
