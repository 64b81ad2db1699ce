"""What people see while files arrive."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dipole.downloads.report import FileBars


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_and_a_log_a_line(terminal: bool) -> None:
    """Each names the file; a name in brackets is no markup."""
    written = io.StringIO()
    with FileBars(Console(file=written, force_terminal=terminal, width=120)).show_file(
        "[a]/b.bin", 2_000_000
    ) as report:
        report(1_000_000)
        report(2_000_000)
    assert "[a]/b.bin" in written.getvalue()
    assert ("━" in written.getvalue()) == terminal
    assert ("2.0/2.0 MB" if terminal else "(2.0 MB)") in written.getvalue()
