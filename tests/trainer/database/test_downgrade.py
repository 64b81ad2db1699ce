"""`dipole db downgrade`: to an older version's tables and forward again, with rows in them; and to none at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from dipole.cli import app
from dipole.cli.operations.backup import restore_backup, write_backup
from dipole.errors import ConfigurationError
from dipole_ratings.database import engine as ratings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.inventory import Inventory

SPEC = TrainSpec.model_validate({"prompts": [{"prompt": "a red square"}], "rewards": [{"name": "shapes"}]})
HEAD, BEFORE = "0012", "0011"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a jobs database of this version."""
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    monkeypatch.setenv("DIPOLE_DATABASE_URL", url)
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "home"))
    upgrade_database(url)
    return str(url)


def run(*words: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["db", *words], input=answer, env={"NO_COLOR": "1", "COLUMNS": "200"})


def revision_of(database: Database) -> str | None:
    with database.engine.connect() as connection:
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def test_back_and_forward_again_with_rows(url: str) -> None:
    """A job is the same afterwards; what the older tables have no place for is lost."""
    database = Database(url)
    job = JobStore(database).create_job(SPEC)
    WorkerRegistry(database).publish("w", Inventory({}, {}), [], lease_s=600, version="0.1.0")
    done = run("downgrade", BEFORE, "--yes")
    assert done.exit_code == 0, done.output
    assert revision_of(database) == BEFORE
    assert f"goes from {HEAD} back to {BEFORE}" in done.output
    assert f"{HEAD}: What workers say of themselves" in done.output
    columns = {each["name"] for each in sa.inspect(database.engine).get_columns("workers")}
    assert not columns & {"version", "decoders"}
    assert "nothing to undo" in run("downgrade", BEFORE).output
    assert run("upgrade").exit_code == 0
    assert revision_of(database) == HEAD
    assert JobStore(database).load_spec(job.id) == SPEC
    (worker,) = WorkerRegistry(database).list_live()
    assert worker.version is None
    database.close()


def test_it_asks_first_and_a_no_leaves_all_as_it_is(url: str) -> None:
    """So does a stdin that has no answer, as a script's."""
    database = Database(url)
    for answer in ("n\n", ""):
        done = run("downgrade", "0001", answer=answer)
        assert done.exit_code == 1
        assert "take a backup" in done.output
        assert revision_of(database) == HEAD
    assert run("downgrade", BEFORE, answer="y\n").exit_code == 0
    assert revision_of(database) == BEFORE
    database.close()


@pytest.mark.parametrize("wrong", ["9999", "head", "-1", "001", "0012+1"])
def test_a_revision_that_is_none_is_a_sentence_with_those_there_are(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPOLE_DATABASE_URL", url := f"sqlite:///{tmp_path}/jobs.db")
    upgrade_database(url)
    done = run("downgrade", "--yes", "--", wrong)
    assert done.exit_code == 1
    assert f"there is no revision {wrong}. There are base, which is without tables, and" in done.output
    assert "0009: Weights of rewards that were changed while a job trained" in done.output


def test_a_revision_ahead_and_a_database_that_is_away_are_sentences(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("downgrade", "0009", "--yes").exit_code == 0
    done = run("downgrade", BEFORE, "--yes")
    assert done.exit_code == 1
    assert "the jobs database is at 0009, before 0011: `dipole db upgrade` goes forward" in done.output
    monkeypatch.setenv("DIPOLE_DATABASE_URL", "postgresql://user:secret@127.0.0.1:9/jobs")
    done = run("downgrade", "0001", "--yes")
    assert done.exit_code == 1
    assert re.search(r"DIPOLE_DATABASE_URL postgresql\S+: nothing was undone: ", done.output)
    assert "secret" not in done.output


def test_an_older_version_is_told_to_go_back_with_the_newer(url: str) -> None:
    """Alembic's own words are of a revision that it cannot locate."""
    database = Database(url)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        ConfigurationError, match=rf"is at 9999, of a newer .* `dipole db downgrade {HEAD}` with the newer"
    ):
        upgrade_database(url)
    database.close()


def test_a_database_is_emptied_in_place_and_a_backup_restored_to_it(url: str, tmp_path: Path) -> None:
    """As docs/backup.md has it; the ratings database too."""
    database = Database(url)
    ratings.upgrade_database(f"sqlite:///{tmp_path}/home/ratings.db")
    job = JobStore(database).create_job(SPEC)
    write_backup(tmp_path / "backups")
    later = JobStore(database).create_job(SPEC)
    for command in ("downgrade", "downgrade-ratings"):
        done = run(command, "base", "--yes")
        assert done.exit_code == 0, done.output
    assert sa.inspect(database.engine).get_table_names() == ["alembic_version"]
    restore_backup(tmp_path / "backups")
    (found,), _ = JobStore(database).list_jobs()
    assert found.id == job.id != later.id
    there = ratings.open_database(f"sqlite:///{tmp_path}/home/ratings.db")
    assert revision_of(there) == "0001"
    assert "nothing to undo" in run("downgrade-ratings", "0001").output
    for each in (there, database):
        each.close()
