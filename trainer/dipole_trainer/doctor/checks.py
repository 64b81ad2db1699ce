"""What `dipole doctor` looks at on this machine, with the settings of its environment. Nothing is written but a file
or object that is removed at once, and nothing is made that is not there.

A check that needs what an earlier one did not reach says that it was left out: the earlier one says what to do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import redis
from sqlalchemy import make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.image_requests import ImageRequestStore
from dipole.broker.rankings import TaskCoordination
from dipole.client.connection import EndpointError
from dipole.client.endpoint import check_reward_url
from dipole.client.rank_client import RankClient, tells_ready
from dipole.database.failures import JOBS_DATABASE, DatabaseName, describe_database_error
from dipole.database.migrations import list_migrations, read_revision
from dipole.database.queries import database_time
from dipole.errors import ConfigurationError, DependencyUnavailable, InvalidInput
from dipole.settings import ApiSettings, MetricsSettings, RankWorkerSettings, SamplerSettings, load_settings
from dipole.stack.findings import Finding, compare_clocks, compare_versions
from dipole.vault import Vault
from dipole.web.auth import refuse_open_host
from dipole_trainer.compute import gpu
from dipole_trainer.database.engine import MIGRATIONS, Database
from dipole_trainer.database.tables import ACTIVE_STATES, JobRow
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.storage.store_client import probe_store
from dipole_trainer.weights.inventory import list_local_weights, weights_names

PACKAGES = ("dipole", "torch", "diffusers", "transformers", "celery", "redis", "sqlalchemy", "prometheus-client")
TIMEOUT_S = 5.0
GIB = 2**30
LITTLE_ROOM_GIB, NO_ROOM_GIB = 5.0, 0.5


def check_setup() -> Iterator[Finding]:
    """Every finding, in an order in which the first problem is the one to mend first."""
    yield _check_versions()
    try:
        settings = load_settings(ApiSettings)
        for kind in (RankWorkerSettings, SamplerSettings, MetricsSettings):
            load_settings(kind)
        refuse_open_host(settings.api_host, settings.api_key, "DIPOLE_API_KEY")
        vault = Vault.from_environment()
    except ConfigurationError as error:
        yield Finding("settings", "problem", str(error), "set the variable anew; docs/SETTINGS.md lists them all")
        return
    yield Finding("settings", "ok", "each is understood, and none contradicts another")
    yield from _check_folder("home", settings.home)
    yield from _check_artifacts(settings)
    yield from _check_redis(settings)
    yield from _check_jobs_database(settings, vault)
    yield _check_devices()


def _check_versions() -> Finding:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return Finding("versions", "ok", f"Python {platform.python_version()}, {', '.join(found)}")


def _check_folder(check: str, folder: Path) -> Iterator[Finding]:
    """Room, and whether a file can be written; of a folder that is not there yet, where it will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        fix = f"free room, or let the user that runs Dipole write to {place}; or choose another folder in its setting"
        yield Finding(check, "problem", f"{folder} cannot be written: {error.strerror or error}", fix)
        return
    free = shutil.disk_usage(place).free / GIB
    message, fix = f"{folder} can be written, {free:.1f} GiB are free", "free room: a job's checkpoints need it"
    if free >= LITTLE_ROOM_GIB:
        yield Finding(check, "ok", message)
    else:
        yield Finding(check, "problem" if free < NO_ROOM_GIB else "warning", message, fix)


def _check_artifacts(settings: ApiSettings) -> Iterator[Finding]:
    """A folder as a folder; any other store by a small object that goes there and back."""
    if "://" not in (url := settings.artifacts_url.removeprefix("file://")):
        yield from _check_folder("artifacts", Path(url))
        return
    try:
        probe_store(url)
    except ConfigurationError as error:
        yield Finding("artifacts", "problem", str(error), "install it, or mend DIPOLE_ARTIFACTS_URL")
    except DependencyUnavailable as error:
        fix = "see bucket, address, keys and their rights (docs/object-storage.md): jobs pause until it is mended"
        yield Finding("artifacts", "problem", str(error), fix)
    else:
        yield Finding("artifacts", "ok", f"at {url} an object was written, listed, read and deleted")


def _check_redis(settings: ApiSettings) -> Iterator[Finding]:
    try:
        with connect_redis(settings.redis_url, connect_timeout_s=TIMEOUT_S, timeout_s=TIMEOUT_S) as client:
            coordination = TaskCoordination(client, settings.candidate_ttl_s)
            now = coordination.server_time()
            yield Finding("redis", "ok", "it answers")
            yield compare_clocks("redis's clock", now, time.time())
            yield from _check_redis_memory(client, settings)
            yield _check_rank_workers(coordination)
            yield _check_samplers(client, now)
    except (redis.RedisError, ConfigurationError) as error:
        why = str(error) if isinstance(error, ConfigurationError) else describe_redis_error(error)
        fix = "start Redis (`dipole up` brings one), or mend DIPOLE_REDIS_URL"
        yield Finding("redis", "problem", why, fix)
        yield _not_checked("rank workers and samplers", "redis")


def _check_redis_memory(client: redis.Redis, settings: ApiSettings) -> Iterator[Finding]:
    try:
        memory, persistence = client.info("memory"), client.info("persistence")
        policy, limit = str(memory["maxmemory_policy"]), int(memory["maxmemory"])
        is_kept = bool(persistence["aof_enabled"])
        save = str(cast("dict[str, str]", client.config_get("save")).get("save", ""))
    except (redis.ResponseError, KeyError):
        yield Finding("redis's memory", "warning", "this Redis does not tell of it", "see that it evicts nothing")
        return
    wanted = settings.candidates_max_gib
    if policy != "noeviction":
        yield Finding(
            "redis's memory", "problem", f"maxmemory-policy is {policy}: queued rankings may vanish",
            "set maxmemory-policy to noeviction",
        )  # fmt: skip
    elif limit and limit < wanted * GIB:
        yield Finding(
            "redis's memory", "warning",
            f"maxmemory is {limit / GIB:.1f} GiB, a job's candidates may take {wanted:g} GiB",
            "raise maxmemory, or lower DIPOLE_CANDIDATES_MAX_GIB",
        )  # fmt: skip
    else:
        room = f"{limit / GIB:.1f} GiB" if limit else "as much as there is"
        yield Finding("redis's memory", "ok", f"{room}, and it evicts nothing")
    if is_kept or save:
        yield Finding(
            "redis's files", "warning", "it keeps images in flight on disk, which costs time and is of no use",
            'start it with --save "" --appendonly no',
        )  # fmt: skip


def _check_rank_workers(coordination: TaskCoordination) -> Finding:
    if hosts := coordination.living_hosts():
        return Finding("rank workers", "ok", f"alive on {', '.join(hosts)}")
    return Finding("rank workers", "problem", "none lives: no reward is asked", "run `dipole serve rank-worker`")


def _check_samplers(client: redis.Redis, now: float) -> Finding:
    if count := ImageRequestStore(client).count_samplers(now=now):
        return Finding("samplers", "ok", f"{count} alive")
    fix = "run `dipole serve sampler`, unless nobody draws images over the API"
    return Finding("samplers", "warning", "none lives: requests for images are refused", fix)


def _check_jobs_database(settings: ApiSettings, vault: Vault) -> Iterator[Finding]:
    def look_into(database: Database) -> Iterator[Finding]:
        yield from _check_workers(database)
        yield from _check_models(database, settings.models_dir)
        yield from _check_endpoints(RewardRegistry(database, vault), settings)

    for found in check_database("database", settings.database_url, JOBS_DATABASE, MIGRATIONS, look_into):
        yield found
        if (found.check, found.status) == ("database", "problem"):
            yield _not_checked("workers, models and rewards", "database")


def check_database(
    check: str,
    url: str,
    named: DatabaseName,
    migrations: Path,
    look_into: Callable[[Database], Iterator[Finding]] = lambda database: iter(()),
) -> Iterator[Finding]:
    """Whether a database answers and has this version's tables, then what `look_into` finds in them."""
    if (missing := _missing_file(url)) is not None:
        fix = f"run `{named.upgrade_command}`, or `dipole up`"
        yield Finding(check, "problem", f"{missing} is not there", fix)
        return
    try:
        database = Database(url, named)
    except ConfigurationError as error:
        yield Finding(check, "problem", str(error), f"mend {named.setting}")
        return
    try:
        with database.reading() as session:
            theirs, ours = database_time(session), time.time()
        with database.engine.connect() as connection:
            revision = read_revision(connection)
        known = [each.revision for each in list_migrations(migrations)]
        if revision != known[-1]:
            yield _tell_revision(check, revision, known, named)
            return
        yield Finding(check, "ok", f"it answers, and has the tables of {revision}")
        yield compare_clocks(f"{check}'s clock", theirs, ours)
        yield from look_into(database)
    except SQLAlchemyError as error:
        fix = f"start it, or mend {named.setting}"
        yield Finding(check, "problem", f"it does not answer: {describe_database_error(error)}", fix)
    finally:
        database.close()


def _tell_revision(check: str, revision: str | None, known: list[str], named: DatabaseName) -> Finding:
    has = f"has the tables of {revision}" if revision else "has no tables"
    fix = f"run `{named.upgrade_command}` with this version"
    if revision not in (None, *known):
        fix = f"it is a newer version's: install that one here, or run its `{named.downgrade_command} {known[-1]}`"
    return Finding(check, "problem", f"it {has}, this version wants those of {known[-1]}", fix)


def _not_checked(check: str, first: str) -> Finding:
    return Finding(check, "warning", f"not checked: {first} tells of them", f"mend {first} first")


def _missing_file(url: str) -> Path | None:
    """SQLite's file where there is none, which opening would make."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database and not parsed.database.startswith("file:")
    return Path(parsed.database) if is_file and parsed.database and not Path(parsed.database).exists() else None


def _check_workers(database: Database) -> Iterator[Finding]:
    if not (rows := WorkerRegistry(database).list_live()):
        yield Finding("workers", "problem", "none lives: jobs stay queued", "run `dipole serve worker`")
        return
    yield Finding("workers", "ok", f"alive: {', '.join(row.name for row in rows)}")
    versions = {row.name: row.version for row in rows}
    yield compare_versions("workers' versions", versions, importlib.metadata.version("dipole"))


def _check_models(database: Database, models_dir: Path) -> Iterator[Finding]:
    """Whether this machine, or a worker that lives, has the model of each job that is not done."""
    with database.reading() as session:
        wanted = set(session.scalars(select(JobRow.model).where(JobRow.state.in_(ACTIVE_STATES)).distinct()))
    here = set(list_local_weights(models_dir).models)
    here.update(name for row in WorkerRegistry(database).list_live() for name in row.models)
    missing = sorted(name for name in wanted if not here & {name, *weights_names(name, None)})
    if missing:
        fix = f"run `dipole models fetch`, or put the folder into {models_dir}"
        yield Finding("models", "problem", f"jobs that are not done name {', '.join(missing)}: nowhere here", fix)
    else:
        yield Finding("models", "ok", f"here or at a worker: {', '.join(sorted(here))}")


def _check_endpoints(registry: RewardRegistry, settings: ApiSettings) -> Iterator[Finding]:
    """Every registered endpoint: allowed, ready, and what it says of itself."""
    rows = registry.list_rewards()
    if not rows:
        yield Finding("rewards", "warning", "none is registered", "run `dipole rewards register NAME=URL`")
    for row in rows:
        check = f"reward {row.name}"
        try:
            endpoint = registry.get_endpoint(row.name)
            check_reward_url(endpoint.url, settings.reward_hosts, field="its URL")
            with RankClient(endpoint, tls_dir=settings.tls_dir) as client:
                status, path = client.probe_readiness(deadline_s=TIMEOUT_S)
                if not tells_ready(status):
                    yield Finding(check, "problem", f"{row.url}{path} answers {status}: not ready", "read its log")
                    continue
                info = client.fetch_info(deadline_s=TIMEOUT_S)
            verified = "" if info.verified is None else ", verified" if info.verified else ", not verified"
            yield Finding(check, "ok", f"ready at {row.url}: {info.model} {info.model_revision}{verified}")
        except EndpointError as error:
            fix = "start it, or register where it is now: `dipole rewards register NAME=URL`"
            yield Finding(check, "problem", str(error), fix)
        except (ConfigurationError, InvalidInput) as error:
            fix = "mend DIPOLE_REWARD_HOSTS, DIPOLE_SECRETS_KEY or DIPOLE_TLS_DIR here, or register it anew"
            yield Finding(check, "problem", str(error), fix)


def _check_devices() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("devices", "ok", "no torch here: this machine neither trains nor draws")
    try:
        importlib.import_module("torch")  # which alone knows the GPUs
        found = gpu.describe_devices()
    except (OSError, RuntimeError) as error:  # a driver's, or a library's
        return Finding("devices", "problem", f"the GPU cannot be used: {error}", "mend its driver")
    names = [str(each["name"]) for each in found if each["kind"] != "cpu"]
    if names:
        return Finding("devices", "ok", ", ".join(names))
    fix = "on a machine with one, install torch's CUDA build (docs/models.md)"
    return Finding("devices", "warning", "no GPU: training and drawing compute on the CPU", fix)
