"""`dipole doctor`: a set-up that is right has no problem; of one that is not the cause is named, with what to do."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import pytest

from dipole.cli.operations.doctor import check_ratings
from dipole.client.endpoint import Endpoint
from dipole.stack.findings import compare_clocks
from dipole_ratings.database.engine import upgrade_database as upgrade_ratings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.doctor import checks
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.weights.inventory import Inventory

from ...s3_server import FULL, running_s3

Found = dict[str, tuple[str, str, str]]


def find(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Found:
    """Findings by check, of a set-up with these settings: status, message, fix."""
    for name in [each for each in os.environ if each.startswith("DIPOLE_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"DIPOLE_{name}", value)
    findings = [*checks.check_setup(), *check_ratings()]
    return {each.check: (each.status, each.message, each.fix or "") for each in findings}


def test_nothing_there_yet_says_how_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis away, no database: two problems with their commands, and nothing is made on the way."""
    home = tmp_path / "home"
    found = find(monkeypatch, HOME=str(home), REDIS_URL="redis://127.0.0.1:9/0")
    assert found["redis"][0] == found["database"][0] == "problem"
    assert "dipole up" in found["redis"][2]
    assert "dipole db upgrade" in found["database"][2]
    for check in ("rank workers and samplers", "workers, models and rewards", "ratings database"):
        assert "not checked" in found[check][1]
    assert not home.exists()


def test_a_database_that_was_not_migrated_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dipole.db").touch()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    status, said = found["database"][:2]
    assert status == "problem"
    assert re.fullmatch(r"it has no tables, this version wants those of \d{4}", said)
    assert "dipole db upgrade" in found["database"][2]
    (tmp_path / "ratings.db").touch()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    assert "it has no tables" in found["ratings database"][1]
    assert "dipole db upgrade-ratings" in found["ratings database"][2]


def test_the_ratings_database_is_looked_at_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade_ratings(url := f"sqlite:///{tmp_path / 'people.db'}")
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0", RATINGS_DATABASE_URL=url)
    assert found["ratings database"][0] == found["ratings database's clock"][0] == "ok"
    away = "postgresql://127.0.0.1:9/ratings"
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0", RATINGS_DATABASE_URL=away)
    assert found["ratings database"][0] == "problem"
    assert "DIPOLE_RATINGS_DATABASE_URL" in found["ratings database"][2]


def test_a_database_of_a_newer_version_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade_database(url := f"sqlite:///{tmp_path / 'dipole.db'}")
    database = Database(url)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    assert "it has the tables of 9999" in found["database"][1]
    assert "dipole db downgrade" in found["database"][2]


def test_workers_of_another_version_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, for an upgrade under way is one; a worker that does not say is told as well."""
    upgrade_database(url := f"sqlite:///{tmp_path / 'dipole.db'}")
    database = Database(url)
    ours = importlib.metadata.version("dipole")
    for name, version in {"same": ours, "older": "0.0.9", "silent": None}.items():
        WorkerRegistry(database).publish(name, Inventory({}, {}), [], lease_s=60, version=version)
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    assert found["workers' versions"][:2] == ("warning", f"here {ours}: older 0.0.9, silent does not say")
    assert "docs/backup.md" in found["workers' versions"][2]
    for name in ("older", "silent"):
        WorkerRegistry(database).remove(name)
    database.close()
    found = find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0")
    assert found["workers' versions"] == ("ok", f"{ours}, as here", "")


def test_an_object_store_is_written_listed_read_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is full, one without the bucket, and one whose client is missing are problems with their sentences."""
    with running_s3(monkeypatch) as s3:

        def look(url: str) -> tuple[str, str, str]:
            return find(monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0", ARTIFACTS_URL=url)[
                "artifacts"
            ]

        status, said, _ = look("s3://artifacts/dipole")
        assert (status, said) == ("ok", "at s3://artifacts/dipole an object was written, listed, read and deleted")
        methods = [each.partition(" ")[0] for each in s3.requests if "/.doctor/" in each]
        assert methods[0] == "PUT"
        assert methods[-1] == "DELETE"
        s3.full = FULL
        status, said, fix = look("s3://artifacts/dipole")
        assert status == "problem"
        assert re.search(r"asked to write .*/\.doctor/\w+, is full: ", said)
        assert "docs/object-storage.md" in fix
        s3.full = None
        assert "has no such bucket" in look("s3://misspelt/dipole")[1]
    assert look("abfs://container/dipole")[0] == "problem"


def test_an_object_store_that_takes_but_does_not_give_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights that are missing show in the step that needs them, and the probe is deleted all the same."""
    with running_s3(monkeypatch) as s3:
        s3.full, s3.refused = (403, "AccessDenied", "Access Denied"), re.compile(r"^GET \S+/\.doctor/\w+")
        found = find(
            monkeypatch, HOME=str(tmp_path), REDIS_URL="redis://127.0.0.1:9/0", ARTIFACTS_URL="s3://artifacts/dipole"
        )
        assert re.search(r"asked to read .*/\.doctor/\w+, refuses us: ", found["artifacts"][1])
        assert any(each.startswith("DELETE") for each in s3.requests)


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
