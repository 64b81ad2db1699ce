"""`dipole backup` and `dipole restore`: databases and artifacts of a platform, in one folder.

    FOLDER/2026-11-30T04-46-12Z/
        backup.json      what is in it, written last: a backup without it was cut short
        jobs.db          the jobs database, as an SQLite file whatever it came from
        ratings.db       the rating service's, where there is one
        artifacts/       every file under DIPOLE_ARTIFACTS_URL; what is as in the backup before is a hard link to it
    FOLDER/….partial     of a backup that was cut short; the next one deletes it

The databases come first: artifacts that are newer than what the database knows are what a worker that died leaves too,
and a resume takes the newest checkpoint that is there. A restore goes the other way round, so that no job is seen
before its files. Neither base models nor rewards' weights are in it, nor any key of the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dipole.cli.optional_imports import import_optional
from dipole.cli.terminal import err
from dipole.errors import ConfigurationError, Conflict, InvalidInput
from dipole.private_files import make_private_folder
from dipole.settings import PlatformSettings, SecretsSettings, load_settings

if TYPE_CHECKING:
    from dipole.database.failures import DatabaseName

MANIFEST, ARTIFACTS, JOBS_FILE, RATINGS_FILE = "backup.json", "artifacts", "jobs.db", "ratings.db"
FORMAT = 1  # of the folder; what is in the databases, their own migrations know
NAME_FORMAT = "%Y-%m-%dT%H-%M-%SZ"
PARTIAL_SUFFIX = ".partial"
LOCK_FILE = ".lock"


class _Part(NamedTuple):
    """A database that a backup has: its file there, its URL here, and the package that knows its tables."""

    file: str
    url: str
    package: str
    extra: str

    @property
    def metadata(self) -> Any:
        tables = import_optional(f"{self.package}.database.tables", self.extra)
        return (tables.Base if self.file == JOBS_FILE else tables.RatingsBase).metadata

    @property
    def name(self) -> DatabaseName:
        if self.file == JOBS_FILE:
            name: DatabaseName = import_optional("dipole.database.failures", self.extra).JOBS_DATABASE
        else:
            name = import_optional(f"{self.package}.database.engine", self.extra).RATINGS_DATABASE
        return name

    @property
    def replaced(self) -> set[str]:
        """Tables that a platform without jobs fills by itself, or by what it is asked before a restore."""
        return {"rewards", "workers", "audit", "cached_scores"} if self.file == JOBS_FILE else set()

    def upgrade(self, url: str) -> None:
        import_optional(f"{self.package}.database.engine", self.extra).upgrade_database(url)

    @contextlib.contextmanager
    def open(self, url: str) -> Iterator[Any]:
        """The database there. What its use raises is told of it."""
        engine = import_optional("dipole.database.engine", self.extra)
        failures = import_optional("dipole.database.failures", self.extra)
        with contextlib.closing(engine.Database(url, self.name)) as database:
            try:
                yield database
            except import_optional("sqlalchemy.exc", self.extra).SQLAlchemyError as error:
                said = failures.describe_database_error(error)
                raise ConfigurationError(f"{self.name.name} cannot be copied: {said}") from error


def write_backup(
    folder: Annotated[Path, typer.Argument(help="Folder of backups; this one gets a folder of its own in it.")],
    keep: Annotated[
        int | None, typer.Option(min=1, help="Delete older backups in the folder, but for so many.", show_default="all")
    ] = None,
) -> None:
    """Copy databases and artifacts to a folder, and print it. The platform may run meanwhile."""
    settings = load_settings(PlatformSettings)
    make_private_folder(folder)
    with _lock_folder(folder) as is_locked:
        if is_locked:
            for cut_short in folder.glob(f"*Z{PARTIAL_SUFFIX}"):
                shutil.rmtree(cut_short)
        target = folder / time.strftime(NAME_FORMAT, time.gmtime())
        earlier = next(reversed(_list_backups(folder)), None)
        manifest, linked_bytes = _write_folder(settings, target, earlier)
        for old in _list_backups(folder)[: -keep if keep else 0]:
            shutil.rmtree(old)
    print(target)
    _tell(manifest)
    if linked_bytes:
        err.print(f"{linked_bytes / 1e6:,.1f} MB of them are as in the backup before, and share its room on the disk.")
    if load_settings(SecretsSettings).secrets_key is not None:
        err.print("Endpoints' keys in it open with DIPOLE_SECRETS_KEY alone, which is not in it: keep that elsewhere.")


def _write_folder(settings: PlatformSettings, target: Path, earlier: Path | None) -> tuple[dict[str, Any], int]:
    """A whole backup at `target`: its manifest, and the bytes of artifacts that it shares with the earlier one."""
    store = _store(settings)
    earlier_artifacts = earlier / ARTIFACTS if earlier else None
    needed, free = store.measure_copy(earlier_artifacts), shutil.disk_usage(target.parent).free
    if needed > free:
        raise Conflict(
            f"{target.parent} has {free / 1e6:,.1f} MB free, and {needed / 1e6:,.1f} MB of artifacts are to be copied "
            "there: free room, keep fewer backups with --keep, or choose another folder"
        )
    partial = target.with_suffix(PARTIAL_SUFFIX)
    partial.mkdir(mode=0o700)
    manifest: dict[str, Any] = {"format": FORMAT, "dipole": importlib.metadata.version("dipole")}
    manifest |= {"written_at": time.time(), "databases": {}}
    with _progress() as progress:
        for part in _find_parts(settings):
            copy_url = f"sqlite:///{partial / part.file}"
            part.upgrade(copy_url)
            with part.open(part.url) as here, part.open(copy_url) as copy:
                manifest["databases"][part.file] = _copy_rows(part, here, copy, progress)
        manifest["artifacts"], linked_bytes = _save_artifacts(store, partial / ARTIFACTS, earlier_artifacts, progress)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    partial.rename(target)
    return manifest, linked_bytes


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[bool]:
    """Keep other backups out of a folder; the kernel lets them in when we end, however. False where its file system
    has no locks. Raises Conflict while another writes there.
    """
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            raise Conflict(
                f"another `dipole backup` is writing to {folder}: wait for it, or name another folder"
            ) from None
        except OSError:
            is_locked = False
        yield is_locked


def restore_backup(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A backup, or a folder of them, whose newest is taken.")
    ],
    paused: Annotated[
        bool, typer.Option("--paused", help="Pause the jobs that were under way, so that no worker takes them up.")
    ] = False,
) -> None:
    """Bring a backup into the databases and artifacts that the settings name, of a platform that has no jobs yet.

    It may be of an older version than this. Jobs that were under way go on from their last checkpoint.
    """
    settings = load_settings(PlatformSettings)
    if not (folder / MANIFEST).is_file() and (backups := _list_backups(folder)):
        folder = backups[-1]
    manifest = _read_manifest(folder)
    _check_artifacts(folder / ARTIFACTS, manifest["artifacts"])
    rows = manifest["databases"]
    parts = [part for part in _find_parts(settings, wanted=rows) if part.file in rows]
    with (
        _progress() as progress,
        tempfile.TemporaryDirectory(prefix="dipole-restore-") as scratch,
        contextlib.ExitStack() as opened,
    ):
        count_rows = import_optional("dipole.database.copies", "api").count_rows
        ways = []
        for part in parts:
            part.upgrade(part.url)
            here = opened.enter_context(part.open(part.url))
            there_already = count_rows(here, part.metadata)
            if count := sum(there_already[name] for name in there_already.keys() - part.replaced):
                raise Conflict(
                    f"{part.name.name} has {count} rows: a backup is restored to a new place. Name one with "
                    f"{part.name.setting}, or with DIPOLE_HOME"
                )
            copy = Path(scratch) / part.file
            shutil.copyfile(folder / part.file, copy)
            part.upgrade(f"sqlite:///{copy}")
            there = opened.enter_context(part.open(f"sqlite:///{copy}"))
            found = count_rows(there, part.metadata)
            if wrong := [name for name, count in rows[part.file].items() if found.get(name, count) != count]:
                raise InvalidInput(f"{folder / part.file} has lost rows of {', '.join(wrong)} since it was written")
            ways.append((part, there, here))
        _load_artifacts(settings, folder / ARTIFACTS, manifest["artifacts"]["files"], progress)
        for part, there, here in ways:
            if paused and part.file == JOBS_FILE:
                import_optional("dipole_trainer.jobs.store", "api").JobStore(there).pause_open_jobs()
            _copy_rows(part, there, here, progress)
    print(folder)
    _tell(manifest)


# ---- databases ------------------------------------------------------------------------------------------------------


def _find_parts(settings: PlatformSettings, wanted: Collection[str] = ()) -> Iterator[_Part]:
    """The jobs database, and the ratings database where it has its tables, or is wanted."""
    yield _Part(JOBS_FILE, settings.database_url, "dipole_trainer", "api")
    local = settings.home / RATINGS_FILE
    named = os.environ.get("DIPOLE_RATINGS_DATABASE_URL")
    ratings = _Part(RATINGS_FILE, named or f"sqlite:///{local}", "dipole_ratings", "ratings")
    if RATINGS_FILE in wanted or ((named or local.is_file()) and _has_tables(ratings)):
        yield ratings


def _has_tables(part: _Part) -> bool:
    inspect = import_optional("sqlalchemy", part.extra).inspect
    with part.open(part.url) as database:
        return bool(inspect(database.engine).has_table(part.metadata.sorted_tables[0].name))


def _copy_rows(part: _Part, source: Any, target: Any, progress: Progress) -> dict[str, int]:
    task = progress.add_task(f"{part.name.name}, rows", total=None)
    copy_rows = import_optional("dipole.database.copies", part.extra).copy_rows
    copied: dict[str, int] = copy_rows(
        source, target, part.metadata, lambda count: progress.advance(task, count), replaced=part.replaced
    )
    return copied


# ---- artifacts ------------------------------------------------------------------------------------------------------


def _store(settings: PlatformSettings) -> Any:
    artifacts = import_optional("dipole_trainer.storage.artifacts", "api")
    return artifacts.ArtifactStore(settings.artifacts_url, settings.home / "work")


def _save_artifacts(store: Any, target: Path, earlier: Path | None, progress: Progress) -> tuple[dict[str, int], int]:
    found, linked_bytes = {"files": 0, "bytes": 0}, 0
    task = progress.add_task("artifacts, files", total=None)
    for path in store.copy_out(target, earlier):
        status = path.stat()
        found["files"] += 1
        found["bytes"] += status.st_size
        linked_bytes += status.st_size if status.st_nlink > 1 else 0
        progress.advance(task)
    return found, linked_bytes


def _check_artifacts(folder: Path, wanted: dict[str, int]) -> None:
    """Whether the files of a backup came along when somebody copied it."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if (len(sizes), sum(sizes)) != (wanted["files"], wanted["bytes"]):
        raise InvalidInput(
            f"{folder} has {len(sizes)} files of {sum(sizes):,} bytes and not {wanted['files']} of "
            f"{wanted['bytes']:,}: copy the backup once more"
        )


def _load_artifacts(settings: PlatformSettings, source: Path, files: int, progress: Progress) -> None:
    task = progress.add_task("artifacts, files", total=files)
    for _ in _store(settings).copy_in(source):
        progress.advance(task)


# ---- folders --------------------------------------------------------------------------------------------------------


def _list_backups(folder: Path) -> list[Path]:
    """Whole ones, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"*Z/{MANIFEST}"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise InvalidInput(f"{folder} is no whole backup: it has no {MANIFEST}") from None
    except ValueError as error:
        raise InvalidInput(f"{folder / MANIFEST} is not readable: {error}") from error
    if manifest.get("format") != FORMAT:
        raise InvalidInput(f"{folder} is of Dipole {manifest.get('dipole')}, whose backups this version does not know")
    return manifest


def _tell(manifest: dict[str, Any]) -> None:
    for file, tables in manifest["databases"].items():
        err.print(f"{file}: {sum(tables.values()):,} rows in {len(tables)} tables")
    artifacts = manifest["artifacts"]
    err.print(f"{ARTIFACTS}: {artifacts['files']:,} files, {artifacts['bytes'] / 1e6:,.1f} MB")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal)
