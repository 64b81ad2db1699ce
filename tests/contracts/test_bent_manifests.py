"""A broken manifest fails the tests: each mistake here is made in manifests that are right, and a check that stands in
this folder for every overlay must refuse it.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from . import test_k8s
from .kustomize import Object, build, containers
from .manifests import check_manifests

ROOT = Path(__file__).resolve().parents[2]
REFUSED = (AssertionError, KeyError, ValueError)


class Manifests:
    """The objects of an overlay, to be bent."""

    def __init__(self, found: list[Object]) -> None:
        self.objects = found

    def get(self, kind: str, name: str) -> Any:
        return next(each for each in self.objects if (each["kind"], each["metadata"]["name"]) == (kind, name))

    def container(self, name: str = "worker", kind: str = "Deployment") -> Any:
        return containers(self.get(kind, name))[-1]

    def variable(self, workload: str, name: str) -> Any:
        return next(each for each in self.container(workload)["env"] if each["name"] == name)


Bend = Callable[[Manifests], object]
API_SERVER: dict[str, Bend] = {  # what check_manifests refuses
    "a key that does not exist": lambda all_: all_.get("Deployment", "api")["spec"].update(replica=2),
    "a key one floor too high": lambda all_: all_.get("Deployment", "api").update(template={}),
    "a kind that does not exist": lambda all_: all_.get("Deployment", "api").update(kind="Deploymnt"),
    "a version that is gone": lambda all_: all_.get("NetworkPolicy", "api").update(apiVersion="extensions/v1beta1"),
    "no selector": lambda all_: all_.get("Deployment", "api")["spec"].pop("selector"),
    "a container without a name": lambda all_: all_.container().pop("name"),
    "a variable whose value is a number": lambda all_: all_.variable("api", "DIPOLE_API_PORT").update(value=8400),
    "a list in place of one": lambda all_: all_.get("Service", "api")["spec"].update(selector=["api"]),
    "a quantity in words": lambda all_: all_.container()["resources"]["limits"].update(memory="8 GiB"),
    "a quantity in another unit": lambda all_: all_.container("redis")["resources"]["limits"].update(memory="5gb"),
    "a volume's quantity": lambda all_: all_.get("PersistentVolumeClaim", "weights")["spec"]["resources"][
        "requests"
    ].update(storage="50 Gi"),
    "more asked for than allowed": lambda all_: all_.container()["resources"]["requests"].update(memory="900Gi"),
    "a name with capitals": lambda all_: all_.get("Service", "api")["metadata"].update(name="Api"),
    "an object twice": lambda all_: all_.objects.append(copy.deepcopy(all_.get("Service", "api"))),
}
EACH_OTHER: dict[str, tuple[Callable[..., None], Bend]] = {  # what a test of test_k8s.py refuses
    "a label that the selector wants": (
        test_k8s.test_a_workload_selects_its_own_pods_alone,
        lambda all_: all_.get("Deployment", "worker")["spec"]["template"]["metadata"]["labels"].pop(
            "app.kubernetes.io/name"
        ),
    ),
    "a selector of somebody else's pods": (
        test_k8s.test_a_workload_selects_its_own_pods_alone,
        lambda all_: all_.get("Deployment", "api")["spec"].update(
            selector={"matchLabels": {"app.kubernetes.io/part-of": "dipole"}}
        ),
    ),
    "a service of nobody": (
        test_k8s.test_a_service_reaches_a_port_that_its_pods_open,
        lambda all_: all_.get("Service", "redis")["spec"].update(selector={"app.kubernetes.io/name": "rediss"}),
    ),
    "a port that nobody opens": (
        test_k8s.test_a_service_reaches_a_port_that_its_pods_open,
        lambda all_: all_.get("Service", "api")["spec"]["ports"][0].update(targetPort="https"),
    ),
    "a policy for nobody": (
        test_k8s.test_a_network_policy_names_pods_and_ports_that_exist,
        lambda all_: all_.get("NetworkPolicy", "sampler")["spec"].update(
            podSelector={"matchLabels": {"app.kubernetes.io/name": "sampler2"}}
        ),
    ),
    "a mount of no volume": (
        test_k8s.test_a_pod_mounts_volumes_that_it_has,
        lambda all_: all_.container("api")["volumeMounts"][0].update(name="scratchh"),
    ),
    "a claim that nobody makes": (
        test_k8s.test_a_pod_mounts_volumes_that_it_has,
        lambda all_: all_.get("PersistentVolumeClaim", "artifacts")["metadata"].update(name="artefacts"),
    ),
    "a secret's key that is not written": (
        test_k8s.test_the_overlay_makes_every_secret_that_a_pod_wants,
        lambda all_: all_.variable("api", "DIPOLE_API_KEY")["valueFrom"]["secretKeyRef"].update(key="API_KEY"),
    ),
    "settings that are nowhere": (
        test_k8s.test_the_overlay_makes_every_secret_that_a_pod_wants,
        lambda all_: all_.container("sampler")["envFrom"][0]["configMapRef"].update(name="settings"),
    ),
    "a setting that does not exist": (
        test_k8s.test_a_container_sets_only_settings_that_exist,
        lambda all_: all_.get("ConfigMap", "dipole")["data"].update(DIPOLE_AUDIT_DAY="90"),
    ),
    "a variable before the one that it refers to": (
        test_k8s.test_a_container_sets_only_settings_that_exist,
        lambda all_: all_.container("worker")["env"].reverse(),
    ),
    "a command that does not exist": (
        test_k8s.test_a_container_runs_a_command_that_exists,
        lambda all_: all_.container("worker").update(command=["dipole", "serve", "trainer"]),
    ),
    "an image that nobody builds": (
        test_k8s.test_a_container_runs_a_command_that_exists,
        lambda all_: all_.container("worker").update(image="dipole-trainer:0.0.9"),
    ),
    "a probe of a route that is not there": (
        test_k8s.test_every_process_has_probes,
        lambda all_: all_.container("api")["readinessProbe"]["httpGet"].update(path="/ready"),
    ),
    "a probe of a port without a name": (
        test_k8s.test_every_process_has_probes,
        lambda all_: all_.container("api")["livenessProbe"]["httpGet"].update(port="web"),
    ),
    "root": (
        test_k8s.test_a_pod_runs_with_least_rights,
        lambda all_: all_.get("StatefulSet", "postgres")["spec"]["template"]["spec"]["securityContext"].update(
            runAsUser=0
        ),
    ),
    "no limit": (
        test_k8s.test_a_pod_runs_with_least_rights,
        lambda all_: all_.container("redis")["resources"].pop("limits"),
    ),
}


@pytest.fixture
def manifests(monkeypatch: pytest.MonkeyPatch) -> Manifests:
    """A copy of what test_k8s.py looks at, in its place. That it is right, as it stands, test_overlays.py tells."""
    found = copy.deepcopy(test_k8s.EVERYTHING)
    monkeypatch.setattr(test_k8s, "EVERYTHING", found)
    return Manifests(found)


@pytest.mark.parametrize("mistake", API_SERVER)
def test_what_the_api_server_would_refuse_is_refused(mistake: str, manifests: Manifests) -> None:
    API_SERVER[mistake](manifests)
    with pytest.raises(AssertionError):
        check_manifests(manifests.objects)


@pytest.mark.parametrize("mistake", EACH_OTHER)
def test_what_does_not_fit_each_other_is_refused(mistake: str, manifests: Manifests, reference: ModuleType) -> None:
    check, bend = EACH_OTHER[mistake]
    apply(check, reference)
    bend(manifests)
    with pytest.raises(REFUSED):
        apply(check, reference)


def apply(check: Callable[..., None], reference: ModuleType) -> None:
    """A test of test_k8s.py, with each container where it wants one."""
    wanted = inspect.signature(check).parameters
    told = {"reference": reference} if "reference" in wanted else {}
    for container in test_k8s.containers() if "container" in wanted else [None]:
        check(**told, **({"container": container} if container else {}))


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("overlays/local/kustomization.yaml", "one-node.yaml", "two-nodes.yaml"),
        ("overlays/local/kustomization.yaml", "name: worker }", "name: workers }"),
        ("overlays/local/kustomization.yaml", "containers/0/resources/requests", "containers/0/resource/requests"),
        ("overlays/local/kustomization.yaml", "namespace: dipole", "nameSpace: dipole"),
        ("overlays/local/namespace.yaml", "metadata:", "kind: Namespace\nmetadata:"),
        ("base/api.yaml", "metadata:", "metadata: ]"),
    ],
)
def test_what_kustomize_would_refuse_is_refused(path: str, old: str, new: str, tmp_path: Path) -> None:
    """A file or a target that is missing, a path into nothing, a wrong key, a key twice, and what is no YAML."""
    bent = shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    build(bent / "overlays/local")
    text = (bent / path).read_text()
    assert old in text
    (bent / path).write_text(text.replace(old, new, 1))
    with pytest.raises((*REFUSED, OSError, yaml.YAMLError)):
        build(bent / "overlays/local")
