"""The verdict to show: as JSON, and as a badge that says in text what it shows, looked at in a real browser."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser
from typer.testing import CliRunner

from dipole.cli.rewards import app as rewards_cli
from dipole.conformance import CHECKS
from dipole.conformance.checks import CheckOutcome, CheckResult
from dipole.conformance.reports.badge import COLOURS, LABEL_COLOUR, draw_badge
from dipole.conformance.reports.verdict import Verdict, reach_verdict
from dipole.protocol.schemas import RewardInfo

from ...browser import browser as browser

INFO = RewardInfo(name="x", model="m", model_revision="r7", recipe_version="1", media_types=["image/png"])


def verdict(*outcomes: CheckOutcome) -> Verdict:
    results = [CheckResult(f"c{number}", "must", "It holds", each) for number, each in enumerate(outcomes)]
    now = datetime(2026, 11, 30, tzinfo=UTC)
    return reach_verdict("http://h", results, endpoint=INFO, suite="0.9", strict=False, now=now)


@pytest.mark.parametrize(
    ("outcomes", "conforms", "sentence"),
    [
        (("passed", "passed", "skipped"), True, "conforms, 2 checks"),
        (("passed", "warning"), True, "conforms, 1 check, 1 warning"),
        (("passed", "failed", "warning"), False, "1 of 3 checks fail"),
    ],
)
def test_a_failure_is_never_green(outcomes: Any, conforms: bool, sentence: str) -> None:
    """What was skipped is not counted as passed, and warnings are told."""
    found = verdict(*outcomes)
    assert (found.conforms, found.sentence) == (conforms, sentence)
    picture = ElementTree.tostring(draw_badge(found)).decode()
    assert (COLOURS["conforms"] in picture) is conforms


def contrast_with_white(colour: str) -> float:
    """WCAG 2.2's contrast ratio."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 1.05 / (sum(part * each for part, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05)


@pytest.mark.parametrize("colour", [LABEL_COLOUR, *COLOURS.values()])
def test_its_words_can_be_read(colour: str) -> None:
    """White on each colour, by WCAG AA."""
    assert contrast_with_white(colour) >= 4.5


def test_a_browser_shows_the_words_inside_their_boxes(browser: Browser, tmp_path: Path) -> None:
    """In whatever font is there, and as an image that has a name."""
    path = tmp_path / "badge.svg"
    ElementTree.ElementTree(draw_badge(verdict(*["passed"] * 41, "warning"))).write(path, encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    script = "all => all.map(one => one.getBoundingClientRect().toJSON())"
    whole, label, _ = page.locator("rect").evaluate_all(script)
    first, second = page.locator("text").evaluate_all(script)
    assert 0 < first["left"] < first["right"] < label["right"] < second["left"] < second["right"] < whole["right"]
    for text in (first, second):
        assert whole["top"] <= text["top"] < text["bottom"] <= whole["bottom"]
    page = browser.new_page()
    page.set_content(f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}">')
    assert page.locator("img").evaluate("one => one.decode().then(() => one.naturalWidth)") > 100
    name = ElementTree.parse(path).getroot().attrib
    assert (name["role"], name["aria-label"]) == ("img", "ranking protocol v1: conforms, 41 checks, 1 warning")


def test_the_command_writes_both_and_of_all_checks_alone(tmp_path: Path) -> None:
    """Nobody listens there, which is no reason to write nothing; a part of the checks is no verdict."""
    report, badge = tmp_path / "report.json", tmp_path / "badge.svg"
    words = ["check", "http://127.0.0.1:9", "--timeout", "2", "--json", str(report), "--badge", str(badge)]
    assert CliRunner().invoke(rewards_cli, words).exit_code == 1
    said = json.loads(report.read_text())
    assert (said["object"], said["conforms"], said["endpoint"]) == ("conformance.report", False, None)
    assert [each["check"] for each in said["checks"]] == [check.name for check in CHECKS]
    assert Verdict.model_validate(said).sentence in badge.read_text()
    badge.unlink()
    refused = CliRunner().invoke(rewards_cli, [*words, "--only", "alive"])
    assert refused.exit_code != 0
    assert not badge.exists()
