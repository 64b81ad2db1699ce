"""What `make release` publishes: of which packages, from which files, and on which base images."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from ..scripts import load_script
from .compose import load_services
from .kustomize import build, containers, load

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = [ROOT / "services/Dockerfile", ROOT / "trainer/Dockerfile"]
SERVICES = load_services()
EXACT = re.compile(r"[a-z]+:\d+\.\d+\.?\d*(-[a-z]+)+")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return load_script("release")


def test_every_image_has_an_sbom_of_what_it_installs(release: ModuleType) -> None:
    """Each that compose builds but for the client's, which is the API's; with the extras of its Dockerfile."""
    images = {each["image"].partition(":")[0].removeprefix("dipole-"): each for each in SERVICES.values()}
    ours = {name for name, each in images.items() if each["image"].startswith("dipole-")} - {"cli"}
    assert release.IMAGES.keys() == ours
    trainer = DOCKERFILES[1].read_text()
    assert f"'.[{','.join(release.IMAGES['api'])}]'" in trainer
    assert f"ARG EXTRAS={','.join(release.IMAGES['trainer'][:-1])}\n" in trainer
    assert all("tracing" in each.read_text() for each in DOCKERFILES)
    for name in ours - {"api", "trainer"}:
        builds = [each["build"] for each in SERVICES.values() if each["image"].startswith(f"dipole-{name}:")]
        extras = {each.get("args", {}).get("EXTRA", "rewards") for each in builds}
        assert extras | {"tracing"} == set(release.IMAGES[name])


def test_the_packages_of_an_image_are_those_that_it_needs(release: ModuleType) -> None:
    found = {image: release.find_packages(extras) for image, extras in release.IMAGES.items()}
    assert {"dipole", "fastapi", "celery", "s3fs", "botocore"} <= found["api"]
    assert not found["api"] & {"torch", "pytest", "moto"}
    assert {"torch", "diffusers", "sqlalchemy"} <= found["trainer"]
    assert "torch" in found["rewards-clip"]
    assert "torch" not in found["rewards"]
    document = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": "Torch", "bom-ref": "t"}, {"name": "pytest", "bom-ref": "p"}],
        "dependencies": [{"ref": "root", "dependsOn": ["t", "p"]}, {"ref": "p"}],
    }
    assert release.select_packages(document, found["trainer"]) == {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": "Torch", "bom-ref": "t"}],
        "dependencies": [{"ref": "root", "dependsOn": ["t"]}],
    }


def test_archives_are_the_same_bytes_and_hold_no_secret(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    names = release.list_manifests()
    assert "k8s/base/kustomization.yaml" in names
    assert not [name for name in names if name.endswith(".env")]
    for target in ("one", "two"):
        release.write_archive(tmp_path / target, names, "dipole-1")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as archive:
        assert {member.name for member in archive} == {f"dipole-1/{name}" for name in names}
        assert {(member.uname, member.mtime) for member in archive} == {("", 1_700_000_000)}


def test_what_compose_needs_is_in_its_archive(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the repository that it mounts, what is added with -f, and who writes keys and certificates."""
    binds = [mount["source"] for each in SERVICES.values() for mount in each.get("volumes", []) if "source" in mount]
    files = {path.removeprefix("./") for path in binds if (ROOT / path).is_file()}
    beside = {path.name for path in ROOT.glob("docker-compose*.yml")} | {"scripts/write-env", "scripts/write-tls"}
    assert files | beside <= set(release.COMPOSE_FILES)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    release.write_archive(tmp_path / "archive", release.COMPOSE_FILES, "dipole-1")
    with tarfile.open(tmp_path / "archive") as archive:
        assert all(member.isreg() and member.size for member in archive), "none is a link to what is left out"


def test_only_an_older_release_makes_way(release: ModuleType, tmp_path: Path) -> None:
    """A folder with anything else in it is left as it is."""
    folder = tmp_path / "new"
    release.empty_folder(folder)
    for name in ("dipole-1.tar.gz", "SHA256SUMS"):
        (folder / name).write_text("0  dipole-1.tar.gz\n")
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"thesis\.txt"):
        release.empty_folder(folder)
    assert len(list(folder.iterdir())) == 3
    (folder / "thesis.txt").unlink()
    release.empty_folder(folder)
    assert not list(folder.iterdir())
    (folder / "dipole-1.tar.gz").touch()
    with pytest.raises(SystemExit, match="no SHA256SUMS"):
        release.empty_folder(folder)


def test_base_images_have_an_exact_tag() -> None:
    """The same in compose and Kubernetes, and in both Dockerfiles."""
    bases = {re.findall(r"^ARG PYTHON=(.*)$", path.read_text(), re.MULTILINE)[0] for path in DOCKERFILES}
    assert len(bases) == 1
    for path in DOCKERFILES:
        stages = set(re.findall(r"^FROM (\S+) AS (\S+)$", path.read_text(), re.MULTILINE))
        assert {source for source, _ in stages} - {name for _, name in stages} == {"${PYTHON}"}
    theirs = {each["image"] for each in SERVICES.values() if not each["image"].startswith("dipole-")}
    manifests = build(ROOT / "k8s/overlays/rewards")
    there = {container["image"] for each in manifests for container in containers(each)}
    assert {image for image in there if not image.startswith("dipole-")} == theirs
    assert all(EXACT.fullmatch(image) for image in theirs | bases)


def list_built(*variables: str) -> dict[str, list[str]]:
    """The images that `make images` makes, and which files say how: those of services whose profile it names."""
    make = subprocess.run(["make", "-n", "images", *variables], cwd=ROOT, check=True, capture_output=True, text=True)
    (line,) = (each for each in make.stdout.splitlines() if "docker compose" in each)
    words = shlex.split(line)
    told = dict(each.split("=") for each in words[: words.index("docker")])
    pairs = list(itertools.pairwise(words))
    assert words[-1] == "build"
    assert ("--profile", "*") in pairs, "each profile: compose takes the star for all"
    files = [name for flag, name in pairs if flag == "-f"]
    services = load_services(files[0], **told)
    return {each["image"]: files for each in services.values() if "build" in each}


def test_make_builds_every_image_that_is_named() -> None:
    """By compose, by any overlay of k8s/, and by the pod that loads weights; those for GPUs with torch's CUDA build."""
    named = {each["image"] for each in SERVICES.values()}
    for overlay in ROOT.glob("k8s/overlays/*"):
        named |= {container["image"] for each in build(overlay) for container in containers(each)}
    (loader,) = load(ROOT / "k8s/weights/loader.yaml")
    named |= {container["image"] for container in loader["spec"]["containers"]}
    plain, cuda = list_built(), list_built("CUDA=1")
    assert {image for image in named if image.startswith("dipole-")} <= plain.keys() | cuda.keys()
    assert not plain.keys() & cuda.keys()
    override = load_services("docker-compose.gpu.yml")
    for image in named & cuda.keys():
        assert cuda[image] == ["docker-compose.yml", "docker-compose.gpu.yml"]
        builders = [name for name, each in SERVICES.items() if "build" in each and f"{each['image']}-cu130" == image]
        indexes = {override[name]["build"]["args"]["TORCH_INDEX"] for name in builders}
        assert indexes == {"https://download.pytorch.org/whl/cu130"}, "whichever of them is built last"
