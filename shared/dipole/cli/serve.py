"""`dipole up`, `dipole serve …` and `dipole db …`: the platform's processes, one at a time or all together.

The embedded stack, compose and Kubernetes run the same commands; settings come from DIPOLE_… variables. Our other
packages are named by string and imported when a command runs: this package depends on none of them.

Health: the API answers /livez and /readyz; `dipole serve rank-worker --check` exits 0 while this host's rank worker
reaches Redis and its lanes stand, and so for `dipole serve sampler --check`; `dipole serve worker --check` while this
host's worker has touched its health file lately.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dipole.cli.optional_imports import explain_missing, import_optional
from dipole.cli.tables import printable
from dipole.client.trainer_api import DEFAULT_URL
from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings, PlatformSettings, RankWorkerSettings, SamplerSettings, load_settings
from dipole.web import auth

if TYPE_CHECKING:
    from dipole.stack.stack import Stack

app = typer.Typer(no_args_is_help=True, help="Run one process of the platform.")
db = typer.Typer(no_args_is_help=True, help="The jobs database.")


@app.command("api")
def serve_api() -> None:
    """Run the trainer API: REST and event streams."""
    from dipole import logs

    settings = load_settings(ApiSettings)
    auth.refuse_open_host(settings.api_host, settings.api_key, "DIPOLE_API_KEY")
    logs.configure_logging("api")
    http_server = import_optional("dipole.web.http_server", "api")
    server = http_server.create_server(
        import_optional("dipole_trainer.api.app", "api").create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        timeout_graceful_shutdown=5,  # event streams never end by themselves
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


@db.command("upgrade")
def upgrade_database() -> None:
    """Bring the jobs database to this version's schema; harmless when it is."""
    import_optional("dipole_trainer.database.engine", "api").upgrade_database(
        load_settings(PlatformSettings).database_url
    )


def run_stack(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder for everything it writes, instead of DIPOLE_HOME.", show_default=".dipole"),
    ] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops every process of it."""
    with explain_missing("embedded"):
        from dipole.stack.stack import Stack
    console = Console(highlight=False, soft_wrap=True)

    def report_restart(name: str, code: int) -> None:
        console.print(f"[yellow]{name} ended (exit code {code}) and was started again[/]")

    try:
        with (
            console.status("Starting …") as status,
            Stack(home, sampler=True, on_restart=report_restart) as stack,
        ):
            status.stop()
            console.print(processes_table(stack))
            print_moved_ports(console, stack)
            console.print("Ready. Ctrl-C stops everything.")
            stack.wait_for_signal()
    except KeyboardInterrupt:
        console.print("Stopped.")


def print_moved_ports(console: Console, stack: Stack) -> None:
    """Which default ports were taken, by whom, and how commands find the API where it listens instead."""
    for sentence in stack.moved_ports:
        console.print(f"[yellow]{printable(sentence)}[/]")
    if stack.api_url != DEFAULT_URL:
        console.print(f"Commands find it with --api {stack.api_url}, or: export DIPOLE_API_URL={stack.api_url}")


def processes_table(stack: Stack) -> Table:
    """Name, address, process and log of everything in a stack."""
    table = Table(title=f"Dipole in {stack.home}", title_justify="left")
    for heading in ("name", "url", "pid", "log"):
        table.add_column(heading, overflow="fold")
    for row in stack.process_rows():
        log = str(row.log.relative_to(stack.home)) if row.log else ""
        table.add_row(row.name, row.url, str(row.pid or "not ours"), log)
    return table
