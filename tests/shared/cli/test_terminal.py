"""Lists stay readable whatever is in them, and are a line an item for programs."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from dipole.cli import terminal
from dipole.cli.progress.job_progress import describe_pending

JOBS: list[dict[str, Any]] = [
    {"id": "ftjob-5ab5fe7e4eeb047e437b8879", "status": "failed", "reason": "no image is finite\n" * 100},
    {"id": "ftjob-0123456789abcdef01234567", "status": "running", "reason": "[/red]\x1b[2J[bold]"},
]
COLUMNS = {name: (lambda item, name=name: item[name]) for name in ("id", "status", "reason")}


def printed(monkeypatch: pytest.MonkeyPatch, *, width: int) -> list[str]:
    """What a terminal of this width shows, without colours."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(terminal, "out", console)
    monkeypatch.setattr(terminal, "Console", lambda **_: console)
    terminal.print_list(JOBS, COLUMNS, as_json=False)
    return screen.getvalue().splitlines()


def test_a_long_reason_takes_a_line_and_no_column_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is one line, its status whole."""
    heading, failed, running = printed(monkeypatch, width=120)
    assert heading.split() == ["id", "status", "reason"]
    assert failed.split()[:2] == ["ftjob-5ab5fe7e4eeb047e437b8879", "failed"]
    assert failed.rstrip().endswith("…")
    assert running.split()[:2] == ["ftjob-0123456789abcdef01234567", "running"]


def test_a_narrow_terminal_shows_each_as_a_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    """No id is cut, no word is broken into letters."""
    lines = printed(monkeypatch, width=60)
    assert lines[0] == "ftjob-5ab5fe7e4eeb047e437b8879"
    assert lines[1].rstrip() == "  status: failed"
    assert all(len(line) <= 60 for line in lines)


def test_text_of_others_neither_colours_nor_clears_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup is shown as it stands, control characters are not sent."""
    shown = "\n".join(printed(monkeypatch, width=120))
    assert "[/red]" in shown
    assert "[bold]" in shown
    assert "\x1b[2J" not in shown


def test_programs_get_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe is no terminal of 80 columns: rows are whole; with --json each is an object with all fields."""
    terminal.print_list(JOBS, COLUMNS, as_json=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["id", *(job["id"] for job in JOBS)]
    terminal.print_list(JOBS, COLUMNS, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == JOBS


def test_a_wait_for_people_reads_as_one_asks_for_it() -> None:
    """How many groups, since when, how fast and until when; what is not known yet is left out."""
    known = {"groups": 12, "oldest_s": 200.4, "per_minute": 1.5, "expected_s": 80.0}
    assert describe_pending(known) == "12 groups, the oldest for 3:20  1.5 a minute  next step in about 1:20"
    assert describe_pending({**known, "per_minute": None, "expected_s": None}) == "12 groups, the oldest for 3:20"
