"""Alert rules and dashboard ask for what processes have, the runbook has an entry for each alert, and the scrapes that
docs/monitoring.md shows find every process.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from .kustomize import build, load, pod_template

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "k8s/components/monitoring"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
PROMETHEUS_OWN = {"up": {"instance"}, "ALERTS": {"alertname", "alertstate"}}
OF_KUBE_STATE_METRICS = {
    "kube_cronjob_created": {"namespace", "cronjob"},
    "kube_cronjob_status_last_successful_time": {"namespace", "cronjob"},
}
OF_A_PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))


@pytest.fixture(scope="module")
def known(reference: ModuleType) -> dict[str, set[str]]:
    """Every series that there is, with its labels."""
    found = {**PROMETHEUS_OWN, **OF_KUBE_STATE_METRICS, **{name: set[str]() for name in OF_A_PROCESS}}
    for metric in reference.metrics():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for end in ends:
            found[metric.name + end] = {*metric.labels, *(["le"] if end == "_bucket" else [])}
    return {name: {*labels, "job", "instance"} for name, labels in found.items()}


def named(expression: str) -> set[str]:
    """What an expression selects: names of series, without what is in quotes."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:(?:dipole|process|kube)_\w+|up\b|ALERTS\b)", bare))


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


def test_a_process_that_must_be_there_is_missed(reference: ModuleType) -> None:
    """API, rank worker and worker, each by a metric without labels, which it has as long as it lives."""
    (rule,) = [each for each in RULES if each["alert"] == "DipoleProcessMissing"]
    missed = dict(re.findall(r'absent\((\w+)\), "process", "([\w-]+)"', rule["expr"]))
    owners = {each.name: (each.process, each.labels) for each in reference.metrics()}
    assert {(name, owners[metric]) for metric, name in missed.items()} == {
        ("api", ("Trainer API", ())),
        ("rank-worker", ("Rank worker", ())),
        ("worker", ("Worker", ())),
    }
    assert set(missed.values()) <= SERVICES.keys()


def test_the_backup_that_is_watched_exists() -> None:
    """Its alert names the CronJob of k8s/components/backup in the namespace of k8s/overlays/local."""
    (rule,) = [each for each in RULES if each["alert"] == "DipoleBackupOld"]
    made = [each for each in load(ROOT / "k8s/components/backup/backup.yaml") if each["kind"] == "CronJob"]
    (namespace,) = load(ROOT / "k8s/overlays/local/namespace.yaml")
    for asked_namespace, name in re.findall(r'\{namespace="([^"]*)", cronjob="([^"]*)"\}', rule["expr"]):
        assert asked_namespace == namespace["metadata"]["name"]
        assert [each["spec"]["schedule"] for each in made if each["metadata"]["name"] == name] == ["17 3 * * *"]


PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(PROMTOOL is None, reason="ALERTS NOT PLAYED: there is no promtool")
def test_alerts_fire_when_they_should() -> None:
    """promtool plays alerts.promtool.yaml: what each alert says of series that come, stand still and go."""
    command = [str(PROMTOOL), "test", "rules", "alerts.promtool.yaml"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_how_fast_the_api_is_leaves_streams_out_and_nothing_else(reference: ModuleType) -> None:
    """A stream lasts as long as its job, and would be all that is seen of the API's times."""
    (panel,) = [each for each in DASHBOARD["panels"] if each["title"] == "API, 95 %"]
    (left_out,) = re.findall(r'route!~"([^"]*)"', panel["targets"][0]["expr"])
    (paths,) = [app.openapi()["paths"] for name, app in reference.apps() if name == "Trainer API"]
    streams = {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    }
    assert streams
    assert {path for path in paths if re.fullmatch(left_out, path)} == streams


def test_names_follow_prometheus_conventions(reference: ModuleType) -> None:
    """Ours begin with dipole_, counters alone end in _total, and each has a sentence."""
    for metric in reference.metrics():
        assert re.fullmatch(r"dipole_[a-z0-9_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.meaning.endswith(".")


def scrape(discovery: str, *, tls: bool) -> dict[str, Any]:
    """The scrape of docs/monitoring.md that finds its targets so; with TLS what stands behind a # is taken in."""
    text = (ROOT / "docs/monitoring.md").read_text()
    blocks = [each for each in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if discovery in each]
    (block,) = [re.sub(r"^( *)# ", r"\1", each, flags=re.MULTILINE) if tls else each for each in blocks]
    (only,) = yaml.safe_load(block)["scrape_configs"]
    assert only["job_name"] == "dipole", "as rules and dashboard have it"
    found: dict[str, Any] = only
    return found


def test_the_scrape_in_compose_finds_every_process() -> None:
    """Each service of ours that serves HTTP or metrics, at its port; nothing else."""
    found = scrape("dns_sd_configs", tls=False)["dns_sd_configs"]
    told = {name: each["port"] for each in found for name in each["names"]}
    ports = {name: 8401 for name, each in SERVICES.items() if "8401" in each.get("expose", ())}
    for name, each in SERVICES.items():
        for variable in ("DIPOLE_METRICS_PORT", "DIPOLE_API_PORT", "DIPOLE_RATINGS_PORT"):
            if variable in each.get("environment", {}):
                ports[name] = int(each["environment"][variable])
    assert told == ports


def test_the_scrape_in_kubernetes_finds_pods_that_run() -> None:
    """A pod that waits or has ended answers nobody, and would be told as a process that is down."""
    rules = scrape("kubernetes_sd_configs", tls=False)["relabel_configs"]
    (dropped,) = [each["regex"] for each in rules if each.get("action") == "drop"]
    phases = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
    assert [each for each in phases if not re.fullmatch(dropped, each)] == ["Running", "Unknown"]


@pytest.mark.parametrize("discovery", ["dns_sd_configs", "kubernetes_sd_configs"])
def test_the_scrape_under_tls_asks_for_a_name_of_the_certificate(discovery: str) -> None:
    """No address of a pod or container is in it. Without TLS the lines are comments: Prometheus wants the file."""
    assert "tls_config" not in scrape(discovery, tls=False)
    told = scrape(discovery, tls=True)["tls_config"]
    assert told == {"ca_file": "/etc/prometheus/dipole/ca.crt", "server_name": "api"}
    assert "names=DNS:api," in (ROOT / "scripts/write-tls").read_text()


def test_the_scrape_under_tls_asks_the_api_alone_by_https() -> None:
    """In compose by its name, in Kubernetes by the annotation that k8s/components/tls gives it."""
    (scheme,) = scrape("dns_sd_configs", tls=True)["relabel_configs"]
    assert (scheme["regex"], scheme["target_label"], scheme["replacement"]) == ("api", "__scheme__", "https")
    *_, scheme = scrape("kubernetes_sd_configs", tls=True)["relabel_configs"]
    assert scheme["target_label"] == "__scheme__"
    assert scheme["source_labels"] == ["__meta_kubernetes_pod_annotation_prometheus_io_scheme"]
    told = {
        each["metadata"]["name"]: pod_template(each)["metadata"].get("annotations", {}).get("prometheus.io/scheme")
        for each in build(ROOT / "k8s/overlays/tls")
        if each["kind"] == "Deployment"
    }
    assert {name: found for name, found in told.items() if found} == {"api": "https"}
