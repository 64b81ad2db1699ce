"""`dipole doctor`: a set-up that is right has no problem; of one that is not the cause is named, with what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dipole.client.endpoint import Endpoint
from dipole.stack.findings import compare_clocks
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.doctor import checks
from dipole_trainer.registry.rewards import RewardRegistry

Found = dict[str, tuple[str, str, str]]


def find(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Found:
    """Findings by check, of a set-up with these settings: status, message, fix."""
    for name in [each for each in os.environ if each.startswith("DIPOLE_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"DIPOLE_{name}", value)
    return {each.check: (each.status, each.message, each.fix or "") for each in checks.check_setup()}


def test_nothing_there_yet_says_how_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis away, no database: two problems with their commands, and nothing is made on the way."""
    home = tmp_path / "home"
    found = find(monkeypatch, HOME=str(home), REDIS_URL="redis://127.0.0.1:9/0")
    assert found["redis"][0] == found["database"][0] == "problem"
    assert "dipole up" in found["redis"][2]
    assert "dipole db upgrade" in found["database"][2]
    assert not home.exists()


def test_a_database_that_was_not_migrated_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dipole.db").touch()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    status, said = found["database"][:2]
    assert status == "problem"
    assert re.fullmatch(r"it has no tables, this version wants those of \d{4}", said)
    assert "dipole db upgrade" in found["database"][2]


def test_endpoints_that_cannot_be_asked_and_a_worker_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_database(url := f"sqlite:///{tmp_path / 'dipole.db'}")
    database = Database(url)
    RewardRegistry(database).put_reward("far", Endpoint(url="http://reward.example.org"))
    RewardRegistry(database).put_reward("dead", Endpoint(url="http://127.0.0.1:9"))
    database.close()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    assert found["database"][0] == "ok"
    assert found["workers"][0] == "problem"
    assert found["reward far"][0] == "problem"
    assert "DIPOLE_REWARD_HOSTS" in found["reward far"][2]
    assert found["reward dead"][0] == "problem"
    assert "dipole rewards register" in found["reward dead"][2]


def test_settings_that_are_wrong_are_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open host without a key, or a number that is none."""
    found = find(monkeypatch, HOME=str(tmp_path), API_HOST="0.0.0.0")
    assert found["settings"][0] == "problem"
    assert "DIPOLE_API_KEY" in found["settings"][1]
    assert "DIPOLE_RANK_THREADS" in find(monkeypatch, HOME=str(tmp_path), RANK_THREADS="many")["settings"][1]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc stands for a disk that takes nothing, also for root."""
    found = find(monkeypatch, HOME=str(tmp_path), ARTIFACTS_URL="/proc/artifacts", REDIS_URL="redis://127.0.0.1:9/0")
    assert found["home"][0] in ("ok", "warning")
    assert found["artifacts"][0] == "problem"
    assert "free room" in found["artifacts"][2]


def test_a_redis_that_may_forget_is_told(redis_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that evicts is a problem, files on disk a warning."""
    with redis_server(tmp_path, None, "--maxmemory-policy", "allkeys-lru", "--appendonly", "yes") as url:  # type: ignore[operator]
        found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL=url)
    assert found["redis"][0] == "ok"
    assert found["redis's memory"][0] == "problem"
    assert "noeviction" in found["redis's memory"][2]
    assert found["redis's files"][0] == "warning"
    assert found["rank workers"][0] == "problem"


def test_clocks_may_differ_by_two_seconds() -> None:
    assert compare_clocks("a clock", 101.9, 100.0).status == "ok"
    assert compare_clocks("a clock", 97.0, 100.0).message == "3.0 s behind this machine's"
