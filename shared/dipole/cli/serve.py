"""`dipole up`, `dipole serve …` and `dipole db …`: the platform's processes, one at a time or all together.

The embedded stack, compose and Kubernetes run the same commands; settings come from DIPOLE_… variables. Our other
packages are named by string and imported when a command runs: this package depends on none of them.

Health: the API answers /livez and /readyz; `dipole serve rank-worker --check` exits 0 while this host's rank worker
reaches Redis and its lanes stand, and so for `dipole serve sampler --check`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings, PlatformSettings, RankWorkerSettings, SamplerSettings, load
from dipole.web import auth

if TYPE_CHECKING:
    from dipole.stack.stack import Stack

app = typer.Typer(no_args_is_help=True, help="Run one process of the platform.")
db = typer.Typer(no_args_is_help=True, help="The jobs database.")


def _module(name: str, extra: str) -> Any:
    """One of our other packages' modules, with a sentence when its dependencies are not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'dipole[{extra}]'") from error


@app.command()
def api() -> None:
    """Run the trainer API: REST and event streams."""
    from dipole import logs

    settings = load(ApiSettings)
    auth.refuse_open_host(settings.api_host, settings.api_key, "DIPOLE_API_KEY")
    logs.configure("api")
    uvicorn = _module("uvicorn", "api")
    _module("dipole_trainer.api.app", "api")
    uvicorn.run(
        "dipole_trainer.api.app:create_app",
        factory=True,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,  # the app writes its own, with request ids
        server_header=False,
        timeout_graceful_shutdown=5,  # event streams never end by themselves
    )


@app.command("rank-worker")
def rank_worker(
    check: Annotated[bool, typer.Option("--check", help="Tell whether this host's rank worker is healthy.")] = False,
    live: Annotated[bool, typer.Option("--live", help="With --check: healthy also while Redis is away.")] = False,
) -> None:
    """Run a rank worker: it takes groups from Redis, asks the reward endpoints and answers."""
    module, settings = _module("dipole_trainer.rank_worker.process", "api"), load(RankWorkerSettings)
    if check:
        module.check(settings, live=live)
    else:
        module.main(settings)


@app.command()
def worker() -> None:
    """Run a trainer worker: it claims one job at a time and trains it."""
    _module("dipole_trainer.worker.process", "trainer").main(load(PlatformSettings))


@app.command()
def sampler(
    check: Annotated[bool, typer.Option("--check", help="Tell whether this host's sampler is healthy.")] = False,
    live: Annotated[bool, typer.Option("--live", help="With --check: healthy also while Redis is away.")] = False,
) -> None:
    """Run a sampler: it draws the images that /v1/images/generations is asked for."""
    module, settings = _module("dipole_trainer.sampler.process", "trainer"), load(SamplerSettings)
    if check:
        module.check(settings, live=live)
    else:
        module.main(settings)


@db.command()
def upgrade() -> None:
    """Bring the jobs database to this version's schema; harmless when it is."""
    _module("dipole_trainer.database.engine", "api").upgrade(load(PlatformSettings).database_url)


def up(
    home: Annotated[Path | None, typer.Option(help="Folder for everything it writes [default: .dipole].")] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops every process of it."""
    stack_module = _module("dipole.stack.stack", "embedded")
    console = Console()

    def restarted(name: str, code: int) -> None:
        console.print(f"[yellow]{name} ended (exit code {code}) and was started again[/]")

    try:
        with (
            console.status("Starting …") as status,
            stack_module.Stack(home, sampler=True, on_restart=restarted) as stack,
        ):
            status.stop()
            console.print(what_runs_where(stack))
            console.print("Ready. Ctrl-C stops everything.")
            stack.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")


def what_runs_where(stack: Stack) -> Table:
    """Name, address, process and log of everything in a stack."""
    table = Table(title=f"Dipole in {stack.home}", title_justify="left")
    for heading in ("name", "url", "pid", "log"):
        table.add_column(heading, overflow="fold")
    for row in stack.table():
        log = str(row.log.relative_to(stack.home)) if row.log else ""
        table.add_row(row.name, row.url, str(row.pid or "not ours"), log)
    return table
