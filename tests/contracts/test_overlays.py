"""The overlays of k8s/ make manifests that fit the schemas, from all that lies there, with the keys that they want."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from dipole.redis_url import parse_redis_url
from dipole.settings import PlatformSettings
from dipole.vault import Vault

from .compose import load_services
from .kustomize import Object, build, containers, kustomization, load
from .manifests import check_manifests, parse_quantity

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent for path in ROOT.glob("k8s/overlays/*/kustomization.yaml"))
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="KUSTOMIZE NOT COMPARED WITH: there is no kubectl"
)
BY_HAND = {K8S / "weights/loader.yaml", K8S / "components/backup/reader.yaml"}  # are applied


def copy_k8s(folder: Path) -> Path:
    """k8s/ with its secrets, as their examples have them."""
    copied = shutil.copytree(K8S, folder / "k8s")
    for example in copied.rglob("*.env.example"):
        shutil.copyfile(example, example.with_suffix(""))
    return copied


def run_kubectl(overlay: Path) -> str:
    command = ["kubectl", "kustomize", str(overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.name))
def test_every_manifest_fits_its_schema(overlay: Path) -> None:
    """kubernetes-validate's strict schemas pass what an overlay makes; test_bent_manifests.py shows what is refused."""
    check_manifests([*build(overlay), *(each for path in BY_HAND for each in load(path))])


def test_a_change_of_what_pods_read_starts_them_again() -> None:
    """ConfigMaps and secrets are generated, with a hash in their names: none is a file of its own."""
    kinds = {each["kind"] for path in K8S.rglob("*.yaml") for each in load(path) if "kind" in each}
    assert "Deployment" in kinds
    assert not {"ConfigMap", "Secret"} & kinds


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.name))
def test_kustomize_agrees(overlay: Path, tmp_path: Path) -> None:
    """kubectl makes of an overlay what these tests look at, but for hashes in names and what is secret."""
    output = run_kubectl(copy_k8s(tmp_path) / overlay.relative_to(K8S))
    generated = "|".join(each["metadata"]["name"] for each in build(overlay) if each["kind"] in ("Secret", "ConfigMap"))
    theirs = yaml.safe_load_all(re.sub(rf"\b({generated})-[0-9a-z]{{10}}\b", r"\1", output))

    def plain(found: Iterable[Object]) -> dict[tuple[str, str], Object]:
        return {
            (each["kind"], each["metadata"]["name"]): {} if each["kind"] == "Secret" else each for each in found if each
        }

    assert plain(theirs) == plain(build(overlay))


def test_the_gpu_overlay_trains_draws_and_scores_on_gpus() -> None:
    """Whoever computes has a GPU, and gives it up before the pod that replaces it starts; whoever does not has none."""
    deployments = [each for each in build(K8S / "overlays/gpu") if each["kind"] == "Deployment"]
    holders = set[str]()
    for each in deployments:
        (container,) = each["spec"]["template"]["spec"]["containers"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            holders.add(each["metadata"]["name"])
            assert container["image"].endswith("-cu130"), "its torch can use it"
            assert each["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert holders == {"worker", "sampler", "pickscore", "clip"}


def test_the_tls_overlay_leads_everybody_to_redis_and_the_api_over_tls() -> None:
    """As docker-compose.tls.yml: URLs, probes and mounts; and the key is where it is used alone."""
    deployments = {
        each["metadata"]["name"]: each for each in build(K8S / "overlays/tls") if each["kind"] == "Deployment"
    }
    keyed = set[str]()
    for name, each in deployments.items():
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        assert len(variables) == len(container.get("env", []))
        volumes = [volume["secret"] for volume in pod["volumes"] if volume.get("name") == "tls"]
        if "DIPOLE_REDIS_URL" in variables:
            url = variables["DIPOLE_REDIS_URL"].replace("$(REDIS_PASSWORD)", "a")
            tls = parse_redis_url(url).tls
            assert tls is not None, name
            assert tls["ssl_ca_certs"] == "/etc/dipole-tls/ca.crt"
        assert bool(volumes) == ("DIPOLE_REDIS_URL" in variables or name == "redis")
        assert bool(volumes) == ("/etc/dipole-tls" in [mount["mountPath"] for mount in container["volumeMounts"]])
        keyed |= {name for volume in volumes if "items" not in volume}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "httpGet" in container.get(kind, {}):
                assert container[kind]["httpGet"].get("scheme", "HTTP") == ("HTTPS" if name == "api" else "HTTP")
    assert keyed == {"redis", "api"}
    (redis,) = deployments["redis"]["spec"]["template"]["spec"]["containers"]
    compose = load_services("docker-compose.tls.yml")["redis"]["command"]
    assert [word.replace("/etc/dipole-tls", "/etc/dipole/tls") for word in redis["command"][3:]] == compose[3:]
    assert all("--tls" in redis[kind]["exec"]["command"] for kind in ("readinessProbe", "livenessProbe"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.name))
def test_redis_refuses_writes_before_it_is_killed(overlay: Path) -> None:
    """It drops nothing, holds a job's candidates and more, and its limit leaves a fifth for what maxmemory leaves out;
    in compose, with TLS too, it has as much.
    """
    (redis,) = (
        container
        for each in build(overlay)
        if each["metadata"]["name"] == "redis" and each["kind"] == "Deployment"
        for container in containers(each)
    )
    told = redis["command"]
    most = told[told.index("--maxmemory") + 1]
    assert told[told.index("--maxmemory-policy") + 1] == "noeviction"
    gibibytes = float(most.removesuffix("gb"))  # Redis's unit, of 1024³ bytes
    assert 1.2 * gibibytes * 2**30 <= parse_quantity(redis["resources"]["limits"]["memory"])
    assert gibibytes > PlatformSettings.model_fields["candidates_max_gib"].default
    bounds = ["--maxmemory", most, "--maxmemory-policy", "noeviction"]
    for name in ("docker-compose.yml", "docker-compose.tls.yml"):
        command = load_services(name)["redis"]["command"]
        assert command[command.index("--maxmemory") :][:4] == bounds


def requests(overlay: str, kind: str) -> float:
    """What all pods of an overlay ask the scheduler for, one pod a workload: cores, or bytes."""
    total = 0.0
    for each in build(K8S / "overlays" / overlay):
        for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            total += parse_quantity(container["resources"]["requests"][kind])
    return total


def test_the_local_overlay_fits_a_small_node() -> None:
    """Two cores and 8 GiB, of which the cluster's own pods take a part; also while one deployment rolls."""
    assert requests("local", "cpu") <= 1.2
    assert requests("local", "memory") <= 5 * 2**30


def test_nobody_but_a_store_says_how_many() -> None:
    """An apply leaves alone what `kubectl scale` or an autoscaler set; two of a store would split or spoil its data."""
    for overlay in OVERLAYS:
        told = {each["metadata"]["name"] for each in build(overlay) if "replicas" in each.get("spec", {})}
        assert told == {"redis", "postgres"}


def test_whoever_holds_a_node_s_room_gives_it_up_first() -> None:
    """On a full node a new pod would wait for the one that it replaces, and that one for the new."""
    for overlay in OVERLAYS:
        found = {each["metadata"]["name"]: each["spec"] for each in build(overlay) if each["kind"] == "Deployment"}
        for name in ("worker", "sampler"):
            assert found[name]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_every_manifest_is_in_an_overlay() -> None:
    """No file lies beside a kustomization unused, and nothing is named that is missing."""
    used: set[Path] = set()

    def walk(folder: Path) -> None:
        told = kustomization(folder)
        used.add(folder / "kustomization.yaml")
        for path in [folder / name for name in (*told.get("resources", []), *told.get("components", []))]:
            walk(path.resolve()) if path.is_dir() else used.add(path)
        used.update(folder / each["path"] for each in told.get("patches", []) if "path" in each)
        used.update(folder / name for each in told.get("configMapGenerator", []) for name in each.get("files", []))

    for overlay in OVERLAYS:
        walk(overlay)
    assert {path for path in used | BY_HAND if path.suffix == ".yaml"} == set(K8S.rglob("*.yaml"))


def test_the_key_script_writes_the_keys_of_the_example(tmp_path: Path) -> None:
    """scripts/write-env fills exactly the keys that the overlay's example names, readable by nobody else."""
    subprocess.run([ROOT / "scripts/write-env", tmp_path / "env"], check=True, capture_output=True, timeout=30)
    written = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    example = (K8S / "overlays/local/secrets.env.example").read_text().splitlines()
    assert written.keys() == {line.removesuffix("=") for line in example if line.endswith("=")}
    assert all(len(value) >= 32 for value in written.values())
    assert (tmp_path / "env").stat().st_mode & 0o077 == 0
    assert Vault(written["DIPOLE_SECRETS_KEY"]).seal("a key") != "a key"


def test_the_key_script_adds_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    """A file of an older version gets its new keys; what it holds stays, also without a line's end."""
    file = tmp_path / "env"
    file.write_text("DIPOLE_API_KEY=mine\nHOST_USER=1:1")
    for _ in range(2):
        subprocess.run([ROOT / "scripts/write-env", file], check=True, capture_output=True, timeout=30)
    lines = file.read_text().splitlines()
    assert lines[:2] == ["DIPOLE_API_KEY=mine", "HOST_USER=1:1"]
    names = [line.split("=")[0] for line in lines]
    assert len(names) == len(set(names)) == 8


def test_the_key_script_says_whose_compose_s_output_is(tmp_path: Path) -> None:
    """Of .env alone, which is the default: a secret of Kubernetes has no user of this machine."""
    subprocess.run([ROOT / "scripts/write-env"], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    lines = (tmp_path / ".env").read_text().splitlines()
    assert f"HOST_USER={os.getuid()}:{os.getgid()}" in lines
    assert (tmp_path / "out").is_dir()
