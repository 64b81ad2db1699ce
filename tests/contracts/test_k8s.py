"""The Kubernetes manifests fit each other and the code: selectors, ports, probes, commands, settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from dipole.broker.process_health import HEARTBEAT_TTL_S, HealthFiles
from dipole.client import rewards_file
from dipole.client.endpoint import check_reward_url
from dipole.settings import PlatformSettings
from dipole.stack import container_probe
from dipole_trainer.worker import health

from . import kustomize
from .compose import load_services
from .kustomize import Object, build, load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = load_services()
EVERYTHING = build(ROOT / "k8s/overlays/rewards")  # the overlay that has all there is
LOADER = ROOT / "k8s/weights/loader.yaml"
READER = ROOT / "k8s/components/backup/reader.yaml"
WORKLOADS = {"Deployment", "StatefulSet", "Job", "CronJob", "DaemonSet"}
STORES = {
    "redis": {"REDIS_PASSWORD", "DIPOLE_REDIS_URL"},
    "postgres": {"POSTGRES_PASSWORD", "DIPOLE_DATABASE_URL", "DIPOLE_RATINGS_DATABASE_URL"},
}
BOTH = {"redis", "postgres"}
USED = {"migrate": {"postgres"}, "api": BOTH, "worker": BOTH, "rank-worker": {"redis"}, "sampler": {"redis"}}
USED |= {"people": {"postgres"}, "migrate-ratings": {"postgres"}, "backup": {"postgres"}}


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
    return [each for each in EVERYTHING if each["kind"] in WORKLOADS]


def containers() -> Iterator[Container]:
    for workload in pods():
        for container in kustomize.containers(workload):
            yield Container(workload, container)


PROBE = ["python", "-I", "-S", "/opt/container_probe.py"]


def named(kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in EVERYTHING if each["kind"] == kind}


def rewards() -> dict[str, Object]:
    """Containers of reward services, by the name of their workload."""
    return {each.workload["metadata"]["name"]: each.spec for each in containers() if each.spec["name"] == "reward"}


def runs(command: list[str], reference: ModuleType) -> bool:
    """Whether our image has that command: `dipole …`, or the probe, tested below."""
    if command[0] == "dipole":
        return bool(reference.find_command(command[1:]))
    return command[:4] == PROBE


def ports_of(workload: Object) -> dict[str, int]:
    spec = kustomize.pod_template(workload)["spec"]
    return {port["name"]: port["containerPort"] for each in spec["containers"] for port in each.get("ports", [])}


def labels_of(workload: Object) -> dict[str, str]:
    labels: dict[str, str] = kustomize.pod_template(workload)["metadata"]["labels"]
    return labels


def without_cuda(image: str) -> str:
    return image.removesuffix("-cu130")


def matches(selector: dict[str, str]) -> list[Object]:
    return [each for each in pods() if selector.items() <= labels_of(each).items()]


@pytest.fixture(params=[pytest.param(each, id=each.name) for each in containers()])
def container(request: pytest.FixtureRequest) -> Container:
    found: Container = request.param
    return found


def test_the_overlay_makes_every_secret_that_a_pod_wants(container: Container) -> None:
    """Secrets and their keys, ConfigMaps and claims come from the overlay and its base."""
    for variable in container.spec.get("env", []):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            assert reference["key"] in named("Secret")[reference["name"]]["data"]
    for source in container.spec.get("envFrom", []):
        for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            assert reference not in source or source[reference]["name"] in named(kind)


def test_a_workload_selects_its_own_pods_alone() -> None:
    """Every selector matches the pods of its workload and of no other."""
    for workload in pods():
        if workload["kind"] not in ("Job", "CronJob"):  # its selector is the cluster's own
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
                if "namespaceSelector" not in peer:  # as Prometheus'
                    assert matches(peer["podSelector"]["matchLabels"])
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                if "namespaceSelector" in peer:  # as a collector's of traces
                    continue
                (asked,) = matches(peer["podSelector"]["matchLabels"])
                assert all(port["port"] in ports_of(asked) for port in rule["ports"])


def test_every_process_of_ours_is_scraped_where_it_answers(container: Container) -> None:
    """Its pod's annotations name a port that it opens; the metrics port is the one that its settings say."""
    is_server = container.is_ours and container.workload["kind"] == "Deployment"
    if not is_server or container.spec["name"].startswith("migrate"):
        return
    template = container.workload["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    port = int(template["metadata"]["annotations"]["prometheus.io/port"])
    assert [port] == list(ports_of(container.workload).values())
    if "metrics" in ports_of(container.workload):
        assert template["metadata"]["labels"]["dipole.dev/metrics"] == "true"
        assert named("ConfigMap")["dipole"]["data"]["DIPOLE_METRICS_PORT"] == str(port)


def test_a_pod_runs_with_least_rights(container: Container) -> None:
    """Not root, no escalation, no capabilities, a read-only root, no API token, and limits."""
    has_least_rights(kustomize.pod_template(container.workload)["spec"], container.spec)


def test_the_loader_of_weights_runs_with_least_rights() -> None:
    """The pod that is applied by hand passes what the namespace enforces, and mounts the claims that others read."""
    (pod,) = load(LOADER)
    (container,) = pod["spec"]["containers"]
    has_least_rights(pod["spec"], container)
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in pod["spec"]["volumes"]}
    assert set(claims.values()) == {"weights", "artifacts"} <= named("PersistentVolumeClaim").keys()
    (models,) = [each for each in container["volumeMounts"] if each["name"] == "artifacts"]
    (worker,) = named("Deployment")["worker"]["spec"]["template"]["spec"]["containers"]
    (read,) = [each for each in worker["volumeMounts"] if each["mountPath"] == "/data/models"]
    assert models["subPath"] == read["subPath"], "models land where the worker looks"
    assert container["image"] == COMPOSE["shapes"]["image"]


def test_the_reader_of_backups_sees_the_claim_as_its_jobs_do() -> None:
    """The pod that is applied by hand has least rights, and the user, the image and the claim of those that back up, so
    that what it writes they can read; and the page names what it is called, and where it mounts.
    """
    (pod,) = load(READER)
    (container,) = pod["spec"]["containers"]
    has_least_rights(pod["spec"], container)
    job = kustomize.pod_template(named("CronJob")["restore"])["spec"]
    assert pod["spec"]["securityContext"] == job["securityContext"]
    assert container["image"] == job["containers"][0]["image"]
    (volume,) = pod["spec"]["volumes"]
    assert volume in job["volumes"]
    (mount,) = container["volumeMounts"]
    page = (ROOT / "docs/backup.md").read_text()
    name = pod["metadata"]["name"]
    assert f"exec {name} -- tar cf - -C {mount['mountPath']} " in page
    assert f"exec -i {name} -- tar xf - -C {mount['mountPath']}" in page
    assert f"-f {READER.relative_to(ROOT)}" in page


def has_least_rights(pod: Object, own_container: Object) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own_container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in own_container["resources"]["limits"]
    assert own_container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_a_pod_mounts_volumes_that_it_has(container: Container) -> None:
    """Every mount names a volume of the pod or a claim template, and every claim exists."""
    pod = kustomize.pod_template(container.workload)["spec"]
    volumes = {each["name"]: each for each in pod.get("volumes", [])}
    templates = {each["metadata"]["name"] for each in container.workload["spec"].get("volumeClaimTemplates", [])}
    assert {each["name"] for each in container.spec.get("volumeMounts", [])} <= volumes.keys() | templates
    claims = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claims <= named("PersistentVolumeClaim").keys()
    maps = {each["configMap"]["name"] for each in volumes.values() if "configMap" in each}
    assert maps <= named("ConfigMap").keys()


def test_a_container_sets_only_settings_that_exist(container: Container, reference: ModuleType) -> None:
    """Every DIPOLE_ variable, also of ConfigMaps and secrets, is a setting; $(…) refers to what stands before."""
    shared = {name for kind in ("ConfigMap", "Secret") for each in named(kind).values() for name in each["data"]}
    own = [each["name"] for each in container.spec.get("env", [])]
    assert {name for name in {*own, *shared} if name.startswith("DIPOLE_")} <= reference.setting_names()
    for index, variable in enumerate(container.spec.get("env", [])):
        for used in (part.split(")")[0] for part in variable.get("value", "").split("$(")[1:]):
            assert used in own[:index]


def test_a_container_runs_a_command_that_exists(container: Container, reference: ModuleType) -> None:
    """Ours run a `dipole` command, and their image is one that docker-compose.yml builds, in the same version."""
    if container.is_ours:
        program, *words = container.spec["command"]
        assert program == "dipole"
        assert reference.find_command(words)
        assert without_cuda(container.spec["image"]) in {each["image"] for each in COMPOSE.values()}


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
        policies = [
            each["spec"]
            for each in named("NetworkPolicy").values()
            if each["spec"]["podSelector"].get("matchLabels") == {"app.kubernetes.io/name": store}
        ]
        peers = [peer for policy in policies for rule in policy["ingress"] for peer in rule["from"]]
        callers = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in peers}
        assert callers == {each for each in USED if store in USED[each] and not each.startswith("migrate")}


def test_whoever_handles_endpoints_opens_their_keys(container: Container) -> None:
    """The rank worker opens what the worker sealed; which hosts it asks is in the ConfigMap of all."""
    variables = {each["name"] for each in container.spec.get("env", [])}
    if container.is_ours:
        assert ("DIPOLE_SECRETS_KEY" in variables) == (container.spec["name"] in {"api", "worker", "rank-worker"})


def test_what_a_reward_takes_fits_its_memory(container: Container) -> None:
    """Eight of the largest requests at once, a full queue and 256 MiB for the rest stay within the limit."""
    if container.spec["name"] != "reward":
        return
    told = {each["name"]: each.get("value") for each in container.spec["env"]}
    body, pixels, queue = (
        int(told[f"DIPOLE_REWARD_{name}"]) for name in ("MAX_BODY_BYTES", "MAX_TOTAL_PIXELS", "QUEUE_BYTES")
    )
    gibibytes = int(container.spec["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert 8 * (body + 3 * pixels) + queue + 256 * 2**20 <= gibibytes * 2**30
    assert int(told["DIPOLE_REWARD_MAX_PIXELS"]) <= pixels


def test_declared_rewards_are_services() -> None:
    """The file that the API reads names each reward, at its service's port, on a host that is allowed, with its key."""
    api = next(each.spec for each in containers() if each.name == "api/api")
    told = {each["name"]: each.get("value") for each in api["env"]}
    (volume,) = [
        each["name"] for each in api["volumeMounts"] if told["DIPOLE_REWARDS_FILE"].startswith(each["mountPath"])
    ]
    assert volume == "rewards"
    text = named("ConfigMap")["rewards"]["data"][Path(told["DIPOLE_REWARDS_FILE"]).name]
    assert text == (ROOT / "rewards.toml").read_text()
    entries = tomllib.loads(text)["rewards"]
    assert {each["key_env"] for each in entries.values()} <= told.keys()
    hosts = named("ConfigMap")["dipole"]["data"]["DIPOLE_REWARD_HOSTS"].split(",")
    assert sorted(hosts) == sorted(entries) == sorted([*rewards(), "people"])
    keys = dict.fromkeys(["DIPOLE_REWARD_KEY"], "a-key-of-enough-letters")
    for name, declared in rewards_file.read_rewards_file(ROOT / "rewards.toml", keys).items():
        (port,) = named("Service")[name]["spec"]["ports"]
        assert check_reward_url(declared.endpoint.url, hosts, field="url") == f"http://{name}:{port['port']}"


def test_a_rewards_name_resolves_to_every_pod() -> None:
    """Reward services are headless, as callers spread groups over the addresses; ports are the pods' own then."""
    for name in rewards():
        service = named("Service")[name]["spec"]
        assert service["clusterIP"] == "None"
        assert [port["port"] for port in service["ports"]] == [8401]


def test_a_reward_is_what_compose_says() -> None:
    """Every reward of docker-compose.yml is here, of the same class and image, and the other way round."""
    here = {name: (each["env"][0]["value"], without_cuda(each["image"])) for name, each in rewards().items()}
    there = {
        name: (each["environment"]["DIPOLE_REWARD"], each["image"])
        for name, each in COMPOSE.items()
        if "DIPOLE_REWARD" in each.get("environment", {})
    }
    assert here == there


def test_weights_and_gpus_go_together() -> None:
    """Whoever mounts the claim of weights reads it alone, from its own folder, and has a GPU where the component is."""
    image = (ROOT / "services/Dockerfile").read_text()
    for name, container in rewards().items():
        mounts = {each["name"]: each for each in container["volumeMounts"]}
        has_gpu = container["resources"]["limits"].get("nvidia.com/gpu") == 1
        uses_gpu = {"name": "DIPOLE_REWARD_DEVICE", "value": "cuda"} in container["env"]
        assert ("weights" in mounts) == has_gpu == uses_gpu == bool(COMPOSE[name].get("volumes")), name
        assert container["image"].endswith("-cu130") == has_gpu, "its torch can use it"
        if "weights" in mounts:
            assert mounts["weights"]["readOnly"] is True
            assert mounts["weights"]["subPathExpr"] == "$(DIPOLE_REWARD_NAME)"
            assert f"DIPOLE_REWARD_WEIGHTS={mounts['weights']['mountPath']} " in image
            assert "readOnly" not in mounts["state"]
            assert f"DIPOLE_REWARD_STATE={mounts['state']['mountPath']}\n" in image


def test_every_process_has_probes(container: Container, reference: ModuleType) -> None:
    """Readiness or liveness ask a route of the app behind the port, or run a command that the image has."""
    if container.spec["name"].startswith("migrate") or container.workload["kind"] == "CronJob":  # it ends by itself
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


@pytest.mark.parametrize("process", ["worker", "rank-worker", "sampler"])
def test_a_process_without_a_port_is_probed_by_the_file_that_it_touches(process: str, tmp_path: Path) -> None:
    """The probe of compose and Kubernetes succeeds while the file is young, and fails when it is old or missing."""
    (container,) = (each for each in containers() if each.name == f"{process}/{process}")
    ready: list[str] = container.spec["readinessProbe"]["exec"]["command"]
    live: list[str] = container.spec["livenessProbe"]["exec"]["command"]
    assert COMPOSE[process]["healthcheck"]["test"] == ["CMD", *ready]
    settings = PlatformSettings(home=tmp_path)
    files = HealthFiles(settings, process)

    def probe(command: list[str]) -> bool:
        environment = {**os.environ, "DIPOLE_HOME": str(tmp_path)}
        here = [sys.executable, *command[1:3], container_probe.__file__, *command[4:]]
        return subprocess.run(here, env=environment, capture_output=True, timeout=60, check=False).returncode == 0

    limit = health.HEALTH_TIMEOUT_S if process == "worker" else HEARTBEAT_TTL_S
    assert float(ready[-1]) == float(live[-1]) == limit
    assert settings.health_file("worker") == settings.worker_health_file
    assert not probe(ready)
    files.touch(ready=True)
    assert probe(ready)
    assert probe(live)
    os.utime(settings.health_file(process), (time.time() - 125, time.time() - 125))
    assert not probe(ready)
    # what else it needs is away: alive, not ready
    assert probe(live) is (process != "worker")


def test_images_have_the_probe() -> None:
    """Both images copy it to where compose, Kubernetes and their own health checks name it."""
    for dockerfile in ("services/Dockerfile", "trainer/Dockerfile"):
        assert "COPY shared/dipole/stack/container_probe.py /opt/\n" in (ROOT / dockerfile).read_text()
