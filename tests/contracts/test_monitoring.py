"""Alert rules and dashboard ask for what processes have, and the runbook has an entry for each alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "k8s/components/monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
PROMETHEUS_OWN = {"up": {"instance"}, "ALERTS": {"alertname", "alertstate"}}
OF_A_PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))


@pytest.fixture(scope="module")
def known(reference: ModuleType) -> dict[str, set[str]]:
    """Every series that there is, with its labels."""
    found = {**PROMETHEUS_OWN, **{name: set[str]() for name in OF_A_PROCESS}}
    for metric in reference.metrics():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for end in ends:
            found[metric.name + end] = {*metric.labels, *(["le"] if end == "_bucket" else [])}
    return {name: {*labels, "job", "instance"} for name, labels in found.items()}


def named(expression: str) -> set[str]:
    """What an expression selects: names of series, without what is in quotes."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return {word for word in re.findall(r"\b[a-zA-Z_]\w*", bare) if re.match(r"(dipole|process)_|up$|ALERTS$", word)}


def test_every_metric_that_is_asked_for_exists(known: dict[str, set[str]]) -> None:
    """A rule or panel of a metric that no process has would be silent for ever."""
    asked = {name for each in expressions() for name in named(each)}
    assert asked <= known.keys()
    assert all(named(each) for each in expressions())


def test_every_label_that_is_asked_for_exists(known: dict[str, set[str]]) -> None:
    """What stands in braces is a label of the series before them, and what is summed by is one of a series' there."""
    for expression in expressions():
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name], expression
        labels = {label for name in named(expression) for label in known[name]}
        for grouped in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", expression):
            assert {each.strip() for each in grouped.split(",")} <= labels, expression


def test_every_alert_has_its_entry_in_the_runbook() -> None:
    """Its link leads to a heading of its name, under which is said what it means, where to look and what to do."""
    runbook = (ROOT / "docs/runbook.md").read_text()
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert sorted(entries) == sorted(rule["alert"] for rule in RULES)
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert all(f"**{part}:**" in entries[rule["alert"]] for part in ("Means", "Look", "Do"))


def test_names_follow_prometheus_conventions(reference: ModuleType) -> None:
    """Ours begin with dipole_, counters alone end in _total, and each has a sentence."""
    for metric in reference.metrics():
        assert re.fullmatch(r"dipole_[a-z0-9_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.meaning.endswith(".")
