"""`dipole rewards check`: the conformance suite against any endpoint: a table, JUnit XML, JSON and a badge."""

from __future__ import annotations

import importlib.metadata
import json
import mimetypes
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from xml.etree import ElementTree

import typer
from rich.console import Console

from dipole.cli.progress.waiting import ShownWait
from dipole.cli.terminal import err
from dipole.errors import InvalidInput
from dipole.protocol.validation import check_storable

if TYPE_CHECKING:
    from dipole.conformance import CheckResult
    from dipole.protocol.images import Pixels
    from dipole.protocol.schemas import RewardInfo


def check_endpoint(
    url: Annotated[str, typer.Argument(help="Base URL of the endpoint, as in http://127.0.0.1:8401.")],
    key: Annotated[
        str | None, typer.Option(help="Bearer key of the endpoint.", envvar="DIPOLE_CHECK_KEY", show_envvar=True)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count as failures.")] = False,
    metadata: Annotated[
        str | None, typer.Option(help="Metadata as JSON, sent along for a reward that scores nothing without it.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt to ask with, for a reward that looks for what it names.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Image to ask with, as PNG, JPEG or WebP; repeated: images that must not all score alike."),
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(help="Folder with ca.pem to believe, client.pem and client.key to show; any of them.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML to this file.")] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the verdict and every check as JSON to this file.")
    ] = None,
    badge: Annotated[Path | None, typer.Option(help="Draw the verdict as SVG to this file.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only the check of this name; may be repeated.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 30.0,
) -> None:
    """Run the conformance suite against an endpoint in any language. Exits with 1 when a check fails.

    What a trainer relies on must hold; the rest is warned of. docs/protocol.md says what each check asks.
    """
    from dipole import conformance
    from dipole.client.tls import ssl_context
    from dipole.conformance.reports import tables

    if only and (report or badge):
        raise InvalidInput("--json and --badge are of all checks: leave --only out", field="only")
    verify = True if tls is None else ssl_context(tls.absolute().name, tls.absolute().parent)
    console = Console()
    with ShownWait(err, "Checking") as waiting:
        results = conformance.run_checks(
            url,
            key=key,
            metadata=parse_json_object(metadata),
            prompt=prompt,
            images=read_images(image or ()),
            verify=verify,
            timeout_s=timeout,
            only=only or (),
            strict=strict,
            on_result=lambda result: waiting.update(f"Checking: {result.name} done"),
        )
    console.print(tables.results_table(url, results))
    if junit is not None:
        ElementTree.ElementTree(tables.junit_report(url, results)).write(junit, encoding="utf-8", xml_declaration=True)
    if report is not None or badge is not None:
        info = conformance.fetch_info(url, key=key, verify=verify, timeout_s=timeout)
        write_verdict(url, results, info, strict=strict, report=report, badge=badge)
    if any(result.outcome == "failed" for result in results):
        raise typer.Exit(1)


def write_verdict(
    url: str,
    results: Sequence[CheckResult],
    info: RewardInfo | None,
    *,
    strict: bool,
    report: Path | None,
    badge: Path | None,
) -> None:
    from dipole.conformance.reports.badge import draw_badge
    from dipole.conformance.reports.verdict import reach_verdict

    suite, now = importlib.metadata.version("dipole"), datetime.now(UTC)
    verdict = reach_verdict(url, results, endpoint=info, suite=suite, strict=strict, now=now)
    if report is not None:
        report.write_text(verdict.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if badge is not None:
        ElementTree.ElementTree(draw_badge(verdict)).write(badge, encoding="utf-8")


def read_images(paths: Sequence[Path]) -> list[Pixels]:
    """The images, of which no two are equal. Raises InvalidInput."""
    from dipole.protocol import images

    found: dict[bytes, Pixels] = {}
    for path in paths:
        kind = mimetypes.guess_type(path.name)[0]
        if kind not in ("image/png", "image/jpeg", "image/webp"):
            raise InvalidInput(f"--image {path} must be a .png, .jpg or .webp file", field="image")
        try:
            pixels = images.decode_image(path.read_bytes(), kind, field=f"--image {path}")
        except OSError as error:
            raise InvalidInput(f"--image {path} cannot be read: {error.strerror}", field="image") from None
        if pixels.tobytes() in found:
            raise InvalidInput(f"--image {path} shows what another does: give images that differ", field="image")
        found[pixels.tobytes()] = pixels
    return list(found.values())


def parse_json_object(text: str | None) -> dict[str, Any] | None:
    try:
        found = None if text is None else json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--metadata is not JSON: {error}", field="metadata") from None
    if found is not None and not isinstance(found, dict):
        raise InvalidInput("--metadata must be a JSON object", field="metadata")
    check_storable(found, "--metadata")
    return found
