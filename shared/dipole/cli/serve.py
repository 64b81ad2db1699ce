"""`dipole up`, `dipole status` and `dipole serve …`: the platform's processes, one or all together.

The embedded stack, compose and Kubernetes run the same commands; settings come from DIPOLE_… variables. Our other
packages are named by string and imported when a command runs: this package depends on none of them.

Health: the API answers /livez and /readyz; `dipole serve rank-worker --check` exits 0 while this host's rank worker
reaches Redis and its lanes stand, and so for `dipole serve sampler --check`; `dipole serve worker --check` while this
host's worker has touched its health file lately.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dipole.cli.optional_imports import explain_missing, import_optional
from dipole.cli.progress.waiting import ShownWait
from dipole.cli.terminal import JsonOption, KeyOption, UrlOption, err, out, print_list, printable
from dipole.client.ratings_api import DEFAULT_RATINGS_URL
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, TrainerApiError, quote_segment
from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings, PlatformSettings, RankWorkerSettings, SamplerSettings, load_settings
from dipole.web import auth

if TYPE_CHECKING:
    from dipole.stack.stack import LocalRaters, LocalReward, Stack

LATEST_JOBS = 100

app = typer.Typer(no_args_is_help=True, help="Run one process of the platform.")


@app.command("api")
def serve_api() -> None:
    """Run the trainer API: REST and event streams."""
    from dipole import logs, tracing

    settings = load_settings(ApiSettings)
    auth.refuse_open_host(settings.api_host, settings.api_key, "DIPOLE_API_KEY")
    logs.configure_logging("api")
    tracing.configure_tracing("api")
    http_server = import_optional("dipole.web.http_server", "api")
    server = http_server.create_server(
        import_optional("dipole_trainer.api.app", "api").create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        timeout_graceful_shutdown=5,  # event streams never end by themselves
        **http_server.tls_options(
            settings.api_tls_cert, settings.api_tls_key, ("DIPOLE_API_TLS_CERT", "DIPOLE_API_TLS_KEY")
        ),
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise ConfigurationError(f"could not listen on {settings.api_host}:{settings.api_port}")


@app.command("rank-worker")
def serve_rank_worker(
    check: Annotated[bool, typer.Option("--check", help="Tell whether this host's rank worker is healthy.")] = False,
    live: Annotated[bool, typer.Option("--live", help="With --check: healthy also while Redis is away.")] = False,
) -> None:
    """Run a rank worker: it takes groups from Redis, asks the reward endpoints and answers."""
    module, settings = (
        import_optional("dipole_trainer.rank_worker.process", "api"),
        load_settings(RankWorkerSettings),
    )
    if check:
        module.check_health(settings, live=live)
    else:
        module.run_rank_worker(settings)


@app.command("worker")
def serve_worker(
    check: Annotated[bool, typer.Option("--check", help="Tell whether this host's worker is healthy.")] = False,
) -> None:
    """Run a trainer worker: it claims one job at a time and trains it."""
    if check:
        import_optional("dipole_trainer.worker.health", "trainer").check_health(load_settings(PlatformSettings))
    else:
        import_optional("dipole_trainer.worker.process", "trainer").run_worker(load_settings(PlatformSettings))


@app.command("sampler")
def serve_sampler(
    check: Annotated[bool, typer.Option("--check", help="Tell whether this host's sampler is healthy.")] = False,
    live: Annotated[bool, typer.Option("--live", help="With --check: healthy also while Redis is away.")] = False,
) -> None:
    """Run a sampler: it draws the images that /v1/images/generations is asked for."""
    module, settings = (
        import_optional("dipole_trainer.sampler.process", "trainer"),
        load_settings(SamplerSettings),
    )
    if check:
        module.check_health(settings, live=live)
    else:
        module.run_sampler(settings)


@app.command("ratings")
def serve_ratings() -> None:
    """Run the rating service: people behind the ranking protocol, their pages and the operator's."""
    from dipole import logs, tracing

    settings = load_settings(import_optional("dipole_ratings.settings", "ratings").RatingsSettings)
    logs.configure_logging("ratings")
    tracing.configure_tracing("ratings")
    http_server = import_optional("dipole.web.http_server", "ratings")
    server = http_server.create_server(
        import_optional("dipole_ratings.app", "ratings").create_app(settings),
        host=settings.ratings_host,
        port=settings.ratings_port,
        timeout_graceful_shutdown=5,
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise ConfigurationError(f"could not listen on {settings.ratings_host}:{settings.ratings_port}")


def run_stack(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder for everything it writes, instead of DIPOLE_HOME.", show_default=".dipole"),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODULE:CLASS]",
            help="Reward to serve, one of `dipole rewards list` or a class of your own; repeat it.",
            show_default="shapes, colourfulness, people",
        ),
    ] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops every process of it.

    dipole up --reward pickscore --reward clip

    dipole up --reward mine=my_module:Brightness
    """
    with explain_missing("embedded"):
        from dipole.stack.stack import DEFAULT_REWARDS, parse_local_rewards
    rewards = parse_local_rewards(reward) if reward else DEFAULT_REWARDS
    console = Console(highlight=False, soft_wrap=True)

    def report_restart(name: str, code: int) -> None:
        console.print(f"[yellow]{name} ended (exit code {code}) and was started again[/]")

    try:
        with running_stack(console, home, rewards, sampler=True, on_restart=report_restart) as stack:
            if stack.raters_url is not None:
                console.print(f"People rank at {stack.raters_url}: `dipole ratings invite` makes a link for one.")
                if stack.raters_url != DEFAULT_RATINGS_URL:
                    console.print(f"Commands find it with: export DIPOLE_RATINGS_URL={stack.raters_url}")
            console.print("Ready. Ctrl-C stops everything.")
            stack.wait_for_signal()
    except KeyboardInterrupt:
        console.print("Stopped.")


@contextlib.contextmanager
def running_stack(
    console: Console,
    home: Path | None,
    rewards: Sequence[LocalReward | LocalRaters],
    *,
    sampler: bool = False,
    on_restart: Callable[[str, int], None] | None = None,
) -> Iterator[Stack]:
    """Every process ready and listed on the console; none is left afterwards. Raises what Stack does."""
    with explain_missing("embedded"):
        from dipole.stack.stack import Stack
    with (
        ShownWait(err, "Starting the platform") as waiting,
        Stack(home, rewards, sampler=sampler, on_restart=on_restart) as stack,
    ):
        waiting.stop()
        console.print(_processes_table(stack))
        for sentence in stack.moved_ports:
            console.print(f"[yellow]{printable(sentence)}[/]")
        if stack.api_url != DEFAULT_URL:
            console.print(f"Commands find it with --api {stack.api_url}, or: export DIPOLE_API_URL={stack.api_url}")
        yield stack


def _processes_table(stack: Stack) -> Table:
    """Name, address, process and log of everything in a stack."""
    table = Table(title=f"Dipole in {stack.home}", title_justify="left")
    for heading in ("name", "url", "pid", "log"):
        table.add_column(heading, overflow="fold")
    for row in stack.process_rows():
        log = str(row.log.relative_to(stack.home)) if row.log else ""
        table.add_row(row.name, row.url, str(row.pid or "not ours"), log)
    return table


def show_status(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Say whether the platform answers, what its latest jobs do, and whether its rewards are ready.

    Exits with 1 when no API answers, or a reward is not ready.
    """
    with TrainerApi(url, key) as api:
        api.get("/readyz")
        jobs = api.get("/v1/fine_tuning/jobs", limit=LATEST_JOBS)["data"]
        names = [reward["name"] for reward in api.get("/v1/rewards")["data"]]
        with ThreadPoolExecutor(max_workers=8) as pool:
            rewards = list(pool.map(lambda name: _check_reward(api, name), names))
    counts = Counter(job["status"] for job in jobs)
    if as_json:
        print(json.dumps({"api": api.url, "jobs": counts, "rewards": rewards}, ensure_ascii=False))
    else:
        out.print(f"The API at {printable(api.url)} is ready.")
        out.print(f"Jobs, of the latest {LATEST_JOBS}: {_describe_counts(counts)}")
        columns = {
            "reward": lambda reward: reward["name"],
            "ready": lambda reward: "yes" if reward["ok"] else "no",
            "url": lambda reward: reward["url"],
            "problem": lambda reward: reward["problem"] or "",
        }
        print_list(rewards, columns, as_json=False) if rewards else out.print("No reward is registered.")
    if not all(reward["ok"] for reward in rewards):
        raise typer.Exit(1)


def _check_reward(api: TrainerApi, name: str) -> dict[str, Any]:
    try:
        checked: dict[str, Any] = api.post(f"/v1/rewards/{quote_segment(name)}/check")
    except TrainerApiError as error:
        return {"name": name, "url": "", "ok": False, "problem": str(error)}
    return {field: checked[field] for field in ("name", "url", "ok", "problem")}


def _describe_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none yet"
