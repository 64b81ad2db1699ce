"""The service as its own process: conformance, kill -9 between any two writes, and two replicas over one PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from dipole import conformance
from dipole.client.rank_client import RankClient
from dipole.stack.ports import reserve_port
from dipole_ratings.database.engine import open_database
from dipole_ratings.database.tables import AnswerRow, LeaseRow, RaterRow, SubsetRow, TaskRow

from ..processes import start
from .conftest import SERVE, environment
from .people import ScriptedRater, at_work, brightness, grey, group, invite, plain_client

KEY = "a key of sixteen characters"


def answers_of(url: str) -> list[tuple[int, int, str, bool]]:
    """(subset, rater, id, counted) of every answer that is kept."""
    database = open_database(url)
    with database.reading() as session:
        found = session.execute(
            sa.select(AnswerRow.subset_seq, AnswerRow.rater_seq, AnswerRow.id, AnswerRow.counted)
        ).all()
    database.close()
    return [tuple(row) for row in found]  # type: ignore[misc]


def count_rows(url: str, table: Any) -> int:
    database = open_database(url)
    with database.reading() as session:
        found = session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
    database.close()
    return found


def post_group(client: httpx.Client, index: int, **rating: Any) -> str:
    """A task of its own; the id of its ranking. Sent until it is taken, under one key."""
    body, headers = group([index % 200, 220, 240], f"p{index}", **rating), {"Idempotency-Key": f"group-{index}"}
    ends = time.monotonic() + 120
    while True:
        assert time.monotonic() < ends, "the service does not come back"
        with contextlib.suppress(httpx.TransportError):
            answer = client.post("/v1/rank", json=body, headers=headers)
            if answer.status_code != 503:
                assert answer.status_code in (200, 202), answer.text
                return str(answer.json()["id"])
        time.sleep(0.05)


def await_rankings(client: httpx.Client, ids: list[str], timeout_s: float = 120) -> None:
    ends, left = time.monotonic() + timeout_s, list(ids)
    while left:
        assert time.monotonic() < ends, f"{len(left)} rankings never came"
        with contextlib.suppress(httpx.TransportError):
            answer = client.get(f"/v1/rankings/{left[0]}")
            if answer.status_code == 200:
                assert answer.json()["status"] == "completed"
                assert [item["rank"] for item in answer.json()["results"]] == [3, 2, 1]
                left.pop(0)
                continue
        time.sleep(0.05)


def test_the_conformance_suite_passes_with_people_at_work(tmp_path: Path) -> None:
    """Strictly, and nothing is skipped: a scripted rater answers all that the suite asks."""
    with reserve_port() as port:
        variables = environment(f"sqlite:///{tmp_path}/ratings.db", port, KEY=KEY)
        url, process = f"http://127.0.0.1:{port}", start(SERVE, tmp_path / "log", env=variables)
        try:
            wait_until_ready(url, process, tmp_path / "log")
            raters = [ScriptedRater(url, invite(url, KEY), brightness) for _ in range(2)]
            with at_work(*raters):
                # before anything was rated: later the store of answers has what these ask
                first = ("pending_says_when", "pending_can_be_cancelled", "pending_finishes")
                results = conformance.run_checks(url, key=KEY, only=first, timeout_s=60)
                results += conformance.run_checks(url, key=KEY, timeout_s=60)
        finally:
            process.kill()
            process.wait()
    skipped = {"ranks_latents", "refuses_wrong_latents"}  # people look at images
    assert {result.name for result in results if result.outcome == "skipped"} == skipped
    assert {result.name: result.message for result in results if result.outcome not in ("passed", "skipped")} == {}


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(900):
        with contextlib.suppress(httpx.TransportError), plain_client(url) as client:
            if client.get("/readyz").status_code == 200:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_no_answer_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    """The process is killed again and again while groups come in and raters answer; whoever had no answer asks again.

    In the end every group has its ranking, every subset exactly the answers asked for, and every receipt its answer.
    """
    groups, database = 15, f"sqlite:///{tmp_path}/ratings.db"
    dice = random.Random(3)
    with reserve_port() as port:
        variables, url = environment(database, port), f"http://127.0.0.1:{port}"
        process = start(SERVE, tmp_path / "log", env=variables)
        try:
            wait_until_ready(url, process, tmp_path / "log")
            raters = [ScriptedRater(url, invite(url), brightness, patience_s=90) for _ in range(3)]
            with at_work(*raters), plain_client(url) as client:
                ids = []
                for index in range(groups):
                    if index in (5, 10):
                        time.sleep(dice.random() / 2)
                        process.kill()
                        process.wait()
                        process = start(SERVE, tmp_path / "log", env=variables)
                    ids.append(post_group(client, index, min_ratings=2, max_ratings=2))
                await_rankings(client, ids)
        finally:
            process.kill()
            process.wait()
    kept = answers_of(database)
    assert count_rows(database, TaskRow) == groups
    places = [(subset, rater) for subset, rater, _, counted in kept if counted]
    assert len(places) == len(set(places)) == 2 * groups
    receipts = [receipt["id"] for rater in raters for receipt in rater.receipts]
    assert sorted(receipts) == sorted(answer for _, _, answer, _ in kept)


def test_two_replicas_never_give_the_same_place_twice(postgres_url: str, tmp_path: Path) -> None:
    """Six raters, half on each replica, over one PostgreSQL: exactly the answers asked for, and no surplus."""
    groups = 10
    with contextlib.ExitStack() as stack:
        urls = []
        for replica in range(2):
            with reserve_port() as port:
                variables = environment(postgres_url, port)
            log = tmp_path / f"log-{replica}"
            process = start(SERVE, log, env=variables)
            stack.callback(process.wait)
            stack.callback(process.kill)
            urls.append(f"http://127.0.0.1:{port}")
            wait_until_ready(urls[-1], process, log)
        raters = [ScriptedRater(url, invite(urls[0])) for url in urls * 3]
        clients = [stack.enter_context(plain_client(url)) for url in urls]
        ids = [post_group(clients[index % 2], index, min_ratings=3, max_ratings=3) for index in range(groups)]
        with at_work(*raters):
            await_rankings(clients[1], ids)
    kept = answers_of(postgres_url)
    assert all(counted for *_, counted in kept)
    assert len(kept) == len({(subset, rater) for subset, rater, *_ in kept}) == 3 * groups
    assert count_rows(postgres_url, LeaseRow) == 3 * groups, "nobody was given what somebody else held"
    assert count_rows(postgres_url, SubsetRow) == groups
    assert count_rows(postgres_url, RaterRow) == len(raters)


def test_a_trainers_client_trains_on_people(tmp_path: Path) -> None:
    """RankClient gets scores from a group of seven through the protocol's fast lane, an idle rater in between."""
    log = tmp_path / "log"
    with reserve_port() as port:
        variables = environment(f"sqlite:///{tmp_path}/ratings.db", port, KEY=KEY)
        process = start(SERVE, log, env=variables)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, log)
            from dipole.client.endpoint import Endpoint

            with (
                at_work(ScriptedRater(url, invite(url, KEY))),
                RankClient(Endpoint(url=url, key=KEY)) as client,  # type: ignore[arg-type]
            ):
                ranking = client.rank("a", [grey(level) for level in range(10, 80, 10)], deadline_s=60)
        finally:
            process.kill()
            process.wait()
    scores = [item.score for item in ranking.results]
    assert all(low is not None and high is not None and low < high for low, high in itertools.pairwise(scores))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"HOST": "0.0.0.0"}, "DIPOLE_RATINGS_KEY"),
        ({"DATABASE_URL": "mysql://h/db"}, "DIPOLE_RATINGS_DATABASE_URL"),
        ({"CALLBACK_HOSTS": "127.0.0.1"}, "DIPOLE_RATINGS_CALLBACK_SECRET"),
        ({"MAX": "1", "MIN": "2"}, "ratings_max"),
    ],
)
def test_wrong_settings_stop_it_with_a_sentence(tmp_path: Path, more: dict[str, str], said: str) -> None:
    variables = environment(f"sqlite:///{tmp_path}/ratings.db", 0, **more)
    done = subprocess.run(
        [sys.executable, "-m", "dipole.cli", "serve", "ratings"], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
