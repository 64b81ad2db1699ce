"""Autoscalers scale workloads that exist by metrics that exist. KEDA's objects have no schema here: their shape is
looked at by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dipole.settings import RankWorkerSettings

from .kustomize import Object, build, containers

ROOT = Path(__file__).resolve().parents[2]
SCALE = build(ROOT / "k8s/overlays/scale")
DEPLOYMENTS = {each["metadata"]["name"]: each for each in SCALE if each["kind"] == "Deployment"}
SCALED = [each for each in SCALE if each["kind"] == "ScaledObject"]
QUERY = re.compile(r"(?:max|sum)\((?:sum by \(reward\) \()?(\w+)(?:\{([^}]*)\})?\)+")
AUTOSCALERS = [each for each in SCALE if each["kind"] == "HorizontalPodAutoscaler"]


def test_nothing_is_scaled_twice() -> None:
    """KEDA makes a HorizontalPodAutoscaler of its own for each of its objects."""
    names = [each["spec"]["scaleTargetRef"]["name"] for each in (*SCALED, *AUTOSCALERS)]
    assert len(names) == len(set(names))
    assert set(names) <= DEPLOYMENTS.keys()
    assert {"api", "rank-worker", "pickscore"} <= set(names)
    assert not {"worker", "sampler"} & set(names), "each holds a GPU, and a worker a job"


@pytest.mark.parametrize("scaler", AUTOSCALERS, ids=lambda each: str(each["metadata"]["name"]))
def test_what_is_scaled_by_its_processor_is_so_by_cores(scaler: Object) -> None:
    """Not by a share of what it asks for, which is what an idle one needs: any work would be too much."""
    spec = scaler["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": scaler["metadata"]["name"]}
    assert 1 <= spec["minReplicas"] < spec["maxReplicas"]
    (metric,) = spec["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "700m"}}
    asked = [each["resources"]["requests"]["cpu"] for each in containers(DEPLOYMENTS[spec["scaleTargetRef"]["name"]])]
    assert all(re.fullmatch(r"[1-6]\d\dm", cpu) for cpu in asked), "an idle one is below it"


@pytest.mark.parametrize("scaled", SCALED, ids=lambda each: str(each["metadata"]["name"]))
def test_a_scaled_object_is_what_keda_reads(scaled: Object) -> None:
    """KEDA's ScaledObject, v1alpha1, with its scaler for Prometheus: every value of its metadata is text."""
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    bounds = {"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "fallback"}
    assert spec.keys() == {"scaleTargetRef", "triggers", *bounds}
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"], "with none, nobody would say how long the queue is"
    assert spec["fallback"].keys() == {"failureThreshold", "replicas"}
    assert {each["metricType"] for each in spec["triggers"]} == {"AverageValue", "Value"}
    for trigger in spec["triggers"]:
        assert trigger.keys() == {"type", "metricType", "metadata"}
        assert trigger["type"] == "prometheus"
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert float(trigger["metadata"]["threshold"]) > 0
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_queries_name_metrics_labels_and_rewards_that_exist() -> None:
    metrics = (ROOT / "docs/METRICS.md").read_text()
    for scaled in SCALED:
        for trigger in scaled["spec"]["triggers"]:
            name, told = QUERY.fullmatch(trigger["metadata"]["query"]).groups()  # type: ignore[union-attr]
            row = next(line for line in metrics.splitlines() if line.startswith(f"| `{name}` "))
            labels = dict(re.findall(r'(\w+)="([^"]*)"', told or ""))
            assert all(f"`{label}`" in row for label in labels)
            assert labels.get("reward", scaled["metadata"]["name"]) == scaled["metadata"]["name"]


@pytest.mark.parametrize("scaled", SCALED, ids=lambda each: str(each["metadata"]["name"]))
def test_a_demand_that_stays_wants_as_many_pods_as_before(scaled: Object) -> None:
    """Some trigger counts what pods have in hand too: the messages that nobody took shrink with every pod that takes
    some, so that they alone would take away the pods that they had asked for, again and again.
    """
    counted = [each["metadata"]["query"] for each in scaled["spec"]["triggers"] if each["metricType"] == "AverageValue"]
    assert any("dipole_training_waiting_groups{" in query and 'state="asked"' in query for query in counted)


def test_rank_workers_are_counted_by_the_requests_that_each_has_in_flight() -> None:
    (scaled,) = (each for each in SCALED if each["metadata"]["name"] == "rank-worker")
    threads = RankWorkerSettings.model_fields["rank_threads"].default
    counted = [each for each in scaled["spec"]["triggers"] if each["metricType"] == "AverageValue"]
    assert {each["metadata"]["threshold"] for each in counted} == {str(threads)}


def test_whoever_writes_to_the_bucket_has_its_keys() -> None:
    (settings,) = (each for each in SCALE if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "dipole")
    assert settings["data"]["DIPOLE_ARTIFACTS_URL"].startswith("s3://")
    holders = {
        each["metadata"]["name"]
        for each in SCALE
        for container in containers(each)
        if {"secretRef": {"name": "object-storage"}} in container.get("envFrom", [])
    }
    assert holders == {"api", "worker", "sampler", "backup", "restore"}
