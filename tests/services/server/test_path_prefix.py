"""Reward services behind a proxy that adds a path prefix of which they know nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from dipole import conformance
from dipole.client.rank_client import RankClient, StillPending

from ...prefix_proxy import serve_below
from ...processes import serving
from ..conftest import serve_command

IMAGES = [np.full((8, 8, 3), 60 * index, np.uint8) for index in range(3)]
SLOW = """
from dipole_rewards.rewards.colourfulness import Colourfulness

class Slow(Colourfulness):
    name = "slow"
    slow = True
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that answers every ranking with 202, below a prefix."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_reward.py").write_text(SLOW)
    environment = {"DIPOLE_REWARD_MAX_BODY_BYTES": "3000000", "PYTHONPATH": str(folder)}
    with (
        serving(lambda port: serve_command("slow_reward:Slow", port), folder / "log", env=environment) as (inner, _),
        serve_below(inner) as outer,
    ):
        yield outer


def test_a_slow_reward_ranks_behind_a_path_prefix(url: str) -> None:
    """Its Location is relative to the request: whoever resolves it as HTTP says finds the ranking."""
    with RankClient(url) as client:
        ranking = client.rank("p", IMAGES, deadline_s=20)
    assert [item.id for item in ranking.results] == ["c0", "c1", "c2"]
    with httpx.Client(trust_env=False) as plain:
        body = conformance.inputs.rank_request()
        accepted = plain.post(f"{url}/v1/rank", json=body)
        place = accepted.url.join(accepted.headers["location"])
        assert accepted.status_code == 202
        assert str(place).startswith(f"{url}/v1/rankings/rank_")
        assert plain.get(place).status_code in (200, 202)


def test_it_is_looked_at_again_by_the_place_it_was_promised_at(url: str) -> None:
    """As a rank worker does: one short request now, another later, from another connection."""
    with RankClient(url) as client, pytest.raises(StillPending) as caught:
        client.rank("q", IMAGES, deadline_s=20, poll=False)
    assert caught.value.location.startswith(f"{url}/v1/rankings/")
    with RankClient(url) as client:
        assert len(client.rank("q", IMAGES, deadline_s=20, location=caught.value.location).results) == 3


def test_the_conformance_suite_passes_behind_a_prefix(url: str) -> None:
    """Every place that the suite asks is below the prefix, and no check fails."""
    results = conformance.run_checks(url, timeout_s=20)
    assert {result.name: result.message for result in results if result.outcome == "failed"} == {}
    assert next(result for result in results if result.name == "pending_finishes").outcome == "passed"


def test_no_redirect_leads_out_of_the_prefix(url: str) -> None:
    """A slash too many is 404 and not a redirect to a path that only the service itself has."""
    answer = httpx.get(f"{url}/v1/info/", trust_env=False)
    assert (answer.status_code, answer.headers.get("location")) == (404, None)
