"""The results as a table for people, JUnit XML for machines, and the checks as a table for docs/protocol.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from dipole.conformance.checks import CHECKS, CheckResult

_MARKS = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "warning": "[yellow]warning[/]",
    "skipped": "[dim]skipped[/]",
}


def results_table(url: str, results: Sequence[CheckResult]) -> RenderableType:
    """One row a check, with what was seen and what to do where it did not pass; then one line that sums up."""
    rows = Table(title=f"Ranking protocol v1: {escape(url)}", title_justify="left")
    for heading in ("check", "level", "result", "what was checked", "seconds"):
        rows.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    first: dict[str, str] = {}  # the check that said a message first: the others refer to it
    for result in results:
        said = [escape(result.fact)]
        if result.message:
            before = first.setdefault(result.message, result.name)
            message = result.message if before == result.name else f"the same as in {before}"
            colour = {"failed": "red", "warning": "yellow"}.get(result.outcome, "dim")
            said.append(f"[{colour}]{escape(message)}[/]")
            if result.remedy and before == result.name:
                said.append(f"[bold]→[/] {escape(result.remedy)}")
        rows.add_row(result.name, result.level, _MARKS[result.outcome], "\n".join(said), f"{result.seconds:.2f}")
    return Group(rows, summarize_results(results))


def summarize_results(results: Sequence[CheckResult]) -> str:
    """`38 passed, 1 failed (ranks_json), 2 skipped in 3.1 s`."""
    parts = []
    for outcome, word in (("passed", "passed"), ("failed", "failed"), ("warning", "warnings"), ("skipped", "skipped")):
        names = [result.name for result in results if result.outcome == outcome]
        if names or outcome in ("passed", "failed"):
            listed = f" ({', '.join(names)})" if names and outcome in ("failed", "warning") else ""
            parts.append(f"{len(names)} {word}{listed}")
    return f"{', '.join(parts)} in {sum(result.seconds for result in results):.1f} s"


def junit_report(url: str, results: Sequence[CheckResult]) -> ElementTree.Element:
    """A failure is a failure; a warning passes and says itself in system-out."""
    counts = Counter(result.outcome for result in results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"dipole rewards check {url}",
        tests=str(len(results)),
        failures=str(counts["failed"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"dipole.conformance.{result.level}", name=result.name,
            time=f"{result.seconds:.3f}",
        )  # fmt: skip
        said = f"{result.fact}\n{result.message}\n{result.remedy}".strip()
        if result.outcome == "failed":
            ElementTree.SubElement(case, "failure", message=result.message).text = said
        elif result.outcome == "skipped":
            ElementTree.SubElement(case, "skipped", message=result.message)
        elif result.outcome == "warning":
            ElementTree.SubElement(case, "system-out").text = f"warning: {said}"
    return suite


def checks_table() -> str:
    """Every check as a row of Markdown, what a trainer needs first."""
    rows = ["| check | level | fact |", "|---|---|---|"]
    ordered = sorted(CHECKS, key=lambda check: check.level)
    rows += [f"| `{check.name}` | {check.level} | {check.fact} |" for check in ordered]
    return "\n".join(rows)
