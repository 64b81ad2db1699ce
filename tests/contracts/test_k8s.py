"""The Kubernetes manifests fit the schemas, each other, and the code: selectors, ports, probes, commands, settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from dipole.settings import PlatformSettings
from dipole_trainer import worker

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
BASE, LOCAL = ROOT / "k8s/base", ROOT / "k8s/overlays/local"
OVERLAYS = sorted(path.parent for path in ROOT.glob("k8s/overlays/*/kustomization.yaml"))
WORKLOADS = {"Deployment", "StatefulSet", "Job", "DaemonSet"}
STORES = {"redis": {"REDIS_PASSWORD", "DIPOLE_REDIS_URL"}, "postgres": {"POSTGRES_PASSWORD", "DIPOLE_DATABASE_URL"}}
BOTH = {"redis", "postgres"}
USED = {"migrate": {"postgres"}, "api": BOTH, "worker": BOTH, "rank-worker": {"redis"}, "sampler": {"redis"}}


def load(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def kustomization(folder: Path) -> Object:
    (only,) = load(folder / "kustomization.yaml")
    return only


def objects(folder: Path) -> list[Object]:
    """The objects a kustomization collects, before its patches."""
    found = []
    for name in kustomization(folder)["resources"]:
        path = folder / name
        found += objects(path) if path.is_dir() else load(path)
    return found


@dataclass(frozen=True)
class Container:
    workload: Object
    spec: Object

    @property
    def name(self) -> str:
        return f"{self.workload['metadata']['name']}/{self.spec['name']}"

    @property
    def is_ours(self) -> bool:
        return str(self.spec["image"]).startswith("dipole-")


def pods() -> list[Object]:
    return [each for each in objects(BASE) if each["kind"] in WORKLOADS]


def containers() -> Iterator[Container]:
    for workload in pods():
        spec = workload["spec"]["template"]["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield Container(workload, container)


def named(kind: str, folder: Path = BASE) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects(folder) if each["kind"] == kind}


def runs(command: list[str], reference: ModuleType) -> bool:
    """Whether our image has that command: `dipole …`, or the worker's probe, tested below."""
    if command[0] == "dipole":
        return bool(reference.find_command(command[1:]))
    return command == worker_probe()


def worker_probe() -> list[str]:
    (container,) = (each for each in containers() if each.name == "worker/worker")
    command: list[str] = container.spec["livenessProbe"]["exec"]["command"]
    return command


def ports_of(workload: Object) -> dict[str, int]:
    spec = workload["spec"]["template"]["spec"]
    return {port["name"]: port["containerPort"] for each in spec["containers"] for port in each.get("ports", [])}


def labels_of(workload: Object) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def matches(selector: dict[str, str]) -> list[Object]:
    return [each for each in pods() if selector.items() <= labels_of(each).items()]


@pytest.fixture(params=[pytest.param(each, id=each.name) for each in containers()])
def container(request: pytest.FixtureRequest) -> Container:
    found: Container = request.param
    return found


def test_every_manifest_fits_its_schema_without_a_warning() -> None:
    """kubernetes-validate --strict passes, and says neither WARN nor ERROR."""
    files = [path for path in sorted(ROOT.glob("k8s/**/*.yaml")) if path.name != "kustomization.yaml"]
    files.remove(LOCAL / "one-node.yaml")  # a patch, not an object
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert all(line.startswith("INFO") for line in said.splitlines() if line), said


def test_every_file_of_the_base_is_collected() -> None:
    """A manifest beside the kustomization is in it, and nothing in it is missing."""
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization(BASE)["resources"])


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.name))
def test_an_overlay_names_only_what_exists(overlay: Path) -> None:
    """Its resources, patches and secret files exist, and each patch has its target in the base."""
    told = kustomization(overlay)
    for patch in told.get("patches", []):
        for change in load(overlay / patch["path"]):
            assert change["metadata"]["name"] in named(change["kind"])
    for secret in told.get("secretGenerator", []):
        for name in secret["envs"]:
            assert (overlay / f"{name}.example").exists(), "a file made by hand is shown by an example"
    assert objects(overlay)


def test_the_overlay_makes_every_secret_that_a_pod_wants(container: Container) -> None:
    """Secrets and their keys come from the overlay, ConfigMaps and claims from the base."""
    generated = {each["name"]: each["envs"] for each in kustomization(LOCAL)["secretGenerator"]}
    for variable in container.spec.get("env", []):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            (example,) = generated[reference["name"]]
            keys = {line.split("=")[0] for line in (LOCAL / f"{example}.example").read_text().splitlines()}
            assert reference["key"] in keys
    for source in container.spec.get("envFrom", []):
        assert source["configMapRef"]["name"] in named("ConfigMap")


def test_the_key_script_writes_the_keys_of_the_example(tmp_path: Path) -> None:
    """scripts/write-env fills exactly the keys that the overlay's example names, readable by nobody else."""
    subprocess.run([ROOT / "scripts/write-env", tmp_path / "env"], check=True, capture_output=True, timeout=30)
    written = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    example = (LOCAL / "secrets.env.example").read_text().splitlines()
    assert written.keys() == {line.removesuffix("=") for line in example if line.endswith("=")}
    assert all(len(value) >= 32 for value in written.values())
    assert (tmp_path / "env").stat().st_mode & 0o077 == 0


def test_a_workload_selects_its_own_pods_alone() -> None:
    """Every selector matches the pods of its workload and of no other."""
    for workload in pods():
        if workload["kind"] != "Job":  # its selector is the cluster's own
            assert matches(workload["spec"]["selector"]["matchLabels"]) == [workload]


def test_a_service_reaches_a_port_that_its_pods_open() -> None:
    """Selectors match exactly one workload, and targetPort is one of its ports."""
    for service in named("Service").values():
        (workload,) = matches(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports_of(workload)[port["targetPort"]] == port["port"]


def test_a_network_policy_names_pods_and_ports_that_exist() -> None:
    """Every pod a policy selects opens the ports that it allows, and every peer exists and opens its own."""
    for policy in named("NetworkPolicy").values():
        chosen = matches(policy["spec"]["podSelector"].get("matchLabels", {}))
        assert chosen
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                assert all(port["port"] in ports_of(each) for each in chosen)
            for peer in rule.get("from", []):
                assert matches(peer["podSelector"]["matchLabels"])
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                (asked,) = matches(peer["podSelector"]["matchLabels"])
                assert all(port["port"] in ports_of(asked) for port in rule["ports"])


def test_a_pod_runs_with_least_rights(container: Container) -> None:
    """Not root, no escalation, no capabilities, a read-only root, no API token, and limits."""
    pod = container.workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container.spec["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container.spec["resources"]["limits"]
    assert container.spec["resources"]["requests"].keys() == {"cpu", "memory"}


def test_a_pod_mounts_volumes_that_it_has(container: Container) -> None:
    """Every mount names a volume of the pod or a claim template, and every claim exists."""
    spec = container.workload["spec"]
    volumes = {each["name"]: each for each in spec["template"]["spec"].get("volumes", [])}
    templates = {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])}
    assert {each["name"] for each in container.spec.get("volumeMounts", [])} <= volumes.keys() | templates
    claims = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claims <= named("PersistentVolumeClaim").keys()


def test_a_container_sets_only_settings_that_exist(container: Container, reference: ModuleType) -> None:
    """Every DIPOLE_ variable, also of the ConfigMap, is a setting; our containers' $(…) refer to what stands before."""
    shared = {name for each in named("ConfigMap").values() for name in each["data"]}
    own = [each["name"] for each in container.spec.get("env", [])]
    assert {name for name in {*own, *shared} if name.startswith("DIPOLE_")} <= reference.setting_names()
    for index, variable in enumerate(container.spec.get("env", [])):
        for used in (part.split(")")[0] for part in variable.get("value", "").split("$(")[1:]):
            assert used in own[:index]


def test_a_container_runs_a_command_that_exists(container: Container, reference: ModuleType) -> None:
    """Ours run a `dipole` command, and their image is one of the three that the Dockerfiles build."""
    if container.is_ours:
        program, *words = container.spec["command"]
        assert program == "dipole"
        assert reference.find_command(words)
        assert container.spec["image"] in {each["name"] for each in kustomization(BASE)["images"]}


def test_a_later_version_can_be_applied() -> None:
    """No Job: its template cannot change, so applying other tags over it would be refused."""
    assert not named("Job")


def test_a_pod_gets_the_stores_that_it_uses(container: Container) -> None:
    """The address and password of Redis and PostgreSQL are where they are needed and nowhere else."""
    variables = {each["name"] for each in container.spec.get("env", [])}
    uses = {name for name in STORES if variables & STORES[name]}
    if container.is_ours:
        assert uses == USED.get(container.spec["name"], set())
    for store in ("redis", "postgres"):
        (rule,) = named("NetworkPolicy")[store]["spec"]["ingress"]
        callers = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]}
        assert callers == {each for each in USED if store in USED[each] and each != "migrate"}


def test_what_a_reward_takes_fits_its_memory(container: Container) -> None:
    """Eight of the largest requests at once, a full queue and 256 MiB for the rest stay within the limit."""
    if container.spec["name"] != "reward":
        return
    told = {each["name"]: each.get("value") for each in container.spec["env"]}
    body, pixels, queue = (
        int(told[f"DIPOLE_REWARD_{name}"]) for name in ("MAX_BODY_BYTES", "MAX_TOTAL_PIXELS", "QUEUE_BYTES")
    )
    assert container.spec["resources"]["limits"]["memory"] == "1Gi"
    assert 8 * (body + 3 * pixels) + queue + 256 * 2**20 <= 2**30
    assert int(told["DIPOLE_REWARD_MAX_PIXELS"]) <= pixels


def test_registered_rewards_are_services() -> None:
    """Every URL that the API is told of is a service on one of its ports, and every reward is told."""
    (container,) = (each.spec for each in containers() if each.spec["name"] == "register")
    told = dict(word.split("=", 1) for word in container["command"] if "=" in word)
    services = named("Service")
    rewards = {name for name, each in services.items() if each["metadata"].get("labels", {}).get("dipole.dev/kind")}
    assert told == {name: f"http://{name}:{services[name]['spec']['ports'][0]['port']}" for name in rewards}


def test_every_process_has_probes(container: Container, reference: ModuleType) -> None:
    """Readiness or liveness ask a route of the app behind the port, or run a command that the image has."""
    if container.spec["name"] in {"migrate", "register"}:  # they end by themselves
        return
    probes = [value for name, value in container.spec.items() if name.endswith("Probe")]
    assert "livenessProbe" in container.spec
    served = {each.path for each in reference.routes()}
    for probe in probes:
        if http := probe.get("httpGet"):
            assert http["port"] in {port["name"] for port in container.spec["ports"]}
            assert http["path"] in served
        elif container.is_ours:
            assert runs(probe["exec"]["command"], reference)
        else:
            assert probe["exec"]["command"][0] in {"redis-cli", "pg_isready"}


def test_the_workers_probe_looks_at_the_file_that_the_worker_touches(tmp_path: Path) -> None:
    """It succeeds while the file is young, fails when it is old or missing; compose asks the same."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert compose["services"]["worker"]["healthcheck"]["test"] == ["CMD", *worker_probe()]
    script = worker_probe()[2].replace("/data/", f"{tmp_path}/")
    settings = PlatformSettings(home=tmp_path)

    def probe() -> bool:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    assert not probe()
    worker.touch(settings)
    assert probe()
    old = time.time() - worker.HEALTHY_S - 5
    os.utime(worker.health_file(settings), (old, old))
    assert not probe()
