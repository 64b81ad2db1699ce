"""`dipole rewards check`: the conformance suite against any endpoint, a table for people, JUnit XML for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from xml.etree import ElementTree

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from dipole import conformance


def check(
    url: Annotated[str, typer.Argument(help="Base URL of the endpoint, as in http://127.0.0.1:8401.")],
    key: Annotated[
        str | None, typer.Option(help="Bearer key of the endpoint.", envvar="DIPOLE_CHECK_KEY", show_envvar=True)
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML to this file.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only the check of this name; may be repeated.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 30.0,
) -> None:
    """Run the conformance suite against an endpoint in any language. Exits with 1 when a check fails."""
    from dipole import conformance

    console = Console()
    with console.status("checking …") as status:
        results = conformance.run(
            url,
            key=key,
            timeout_s=timeout,
            only=only or (),
            on_result=lambda result: status.update(f"checking … {result.name} done"),
        )
    console.print(_table(url, results))
    if junit is not None:
        ElementTree.ElementTree(_junit(url, results)).write(junit, encoding="utf-8", xml_declaration=True)
    counts = {kind: sum(result.outcome == kind for result in results) for kind in ("passed", "failed", "skipped")}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)


_MARKS = {"passed": "[green]passed[/]", "failed": "[bold red]FAILED[/]", "skipped": "[yellow]skipped[/]"}


def _table(url: str, results: Sequence[conformance.Result]) -> Table:
    table = Table(title=f"Ranking protocol v1: {escape(url)}", title_justify="left")
    for heading in ("check", "result", "what was checked", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    for result in results:
        said = escape(result.fact) + (f"\n[red]{escape(result.message)}[/]" if result.message else "")
        table.add_row(result.name, _MARKS[result.outcome], said, f"{result.seconds:.2f}")
    return table


def _junit(url: str, results: Sequence[conformance.Result]) -> ElementTree.Element:
    suite = ElementTree.Element(
        "testsuite",
        name=f"dipole rewards check {url}",
        tests=str(len(results)),
        failures=str(sum(result.outcome == "failed" for result in results)),
        skipped=str(sum(result.outcome == "skipped" for result in results)),
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname="dipole.conformance", name=result.name, time=f"{result.seconds:.3f}"
        )
        if result.outcome != "passed":
            kind = "failure" if result.outcome == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=result.message)
    return suite
