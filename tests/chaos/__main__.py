"""Disturb the platform by a seeded schedule, and say what did not hold.

    python -m tests.chaos --seed 1 --minutes 30

Prints each fault when it is done, and in the end a table of kinds and the verdict. The exit code is 0 when every
property of checker.py holds. Faults and evidence are JSON in the folder that it names.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .evidence import FaultRecord
from .experiment import Options, Verdict, run_experiment
from .schedule import KINDS

MEAN_GAP_S = 7.5  # 240 faults in half an hour


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the schedule; the same one makes the same faults")
    parser.add_argument("--minutes", type=float, default=30, help="how long to disturb")
    parser.add_argument("--gap", type=float, default=MEAN_GAP_S, help="mean seconds between two faults")
    parser.add_argument(
        "--database", choices=["postgresql", "sqlite"], default="postgresql", help="where jobs are kept meanwhile"
    )
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dipole-chaos-"))
    folder.chmod(0o755)  # PostgreSQL's user walks through it
    options = Options(asked.seed, asked.minutes * 60, asked.gap, asked.database)
    console = Console(width=120 if not sys.stdout.isatty() else None)
    console.print(f"seed {options.seed}, {asked.minutes:g} minutes; logs, faults and evidence are in {folder}")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def show(phase: str, part: float, line: str) -> None:
            progress.update(task, description=phase, completed=part)
            if line:
                progress.console.print(line, highlight=False)

        verdict = run_experiment(options, folder, show)
    print_verdict(console, verdict)
    (folder / "violations.json").write_text(json.dumps([asdict(each) for each in verdict.violations], indent=1))
    (folder / "evidence.json").write_text(json.dumps(asdict(verdict.evidence)))
    return 1 if verdict.violations else 0


def is_told(record: FaultRecord) -> bool:
    return record.error is None and (not record.took_effect or " by SIGKILL" in record.done)


def print_verdict(console: Console, verdict: Verdict) -> None:
    records = defaultdict(list)
    for record in verdict.evidence.faults:
        records[record.planned.kind].append(record)
    table = Table(title=f"on {verdict.uses}", title_justify="left")
    for column in ("fault", "times", "took effect", "what it does", "not done, or done otherwise, and why"):
        table.add_column(column, justify="right" if column in ("times", "took effect") else "left", overflow="fold")
    for kind in KINDS:
        why = [f"{name}: {reason}" for name, reason in verdict.impossible.items() if name.split()[0] == kind.name]
        done = records[kind.name]
        why += [f"{each.planned.target}: {each.error}" for each in done if each.error]
        # of an injection that had to make do, such as a signal for the kernel's killer, what stands after its process
        otherwise = Counter(each.done.partition(" by ")[2] or each.done for each in done if is_told(each))
        why += [f"{count} × {what.removeprefix('nothing: ')}" for what, count in otherwise.items()]
        table.add_row(kind.name, str(len(done)), str(sum(each.took_effect for each in done)), kind.does, "; ".join(why))
    faults = verdict.evidence.faults
    table.add_row("all", str(len(faults)), str(sum(each.took_effect for each in faults)), "", "", style="bold")
    console.print(table)
    jobs = verdict.evidence.jobs
    rankings = sum(len(group.rankings) for group in verdict.evidence.groups)
    console.print(
        f"{len(jobs)} jobs, {sum(job.fence for job in jobs)} claims of them, {len(verdict.evidence.events)} events, "
        f"{rankings} rankings, {len(verdict.evidence.told.images)} images"
    )
    for found in verdict.violations:
        console.print(f"VIOLATION {found.kind}: {found.where}: {found.what}", style="red", highlight=False)
    console.print(f"{len(verdict.violations)} violations" if verdict.violations else "nothing was lost", style="bold")


if __name__ == "__main__":
    sys.exit(main())
