"""The overlays that docs/ print for users to copy make manifests that work as they stand."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .kustomize import Object, build, containers, pod_template
from .manifests import check_manifests
from .test_overlays import ROOT, copy_k8s, needs_kubectl, run_kubectl

FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)


def list_overlays() -> Iterator[tuple[Path, str]]:
    """Each fence that has the `resources:` of a kustomization, by its page."""
    for page in sorted(ROOT.glob("docs/*.md")):
        for fence in map(textwrap.dedent, FENCE.findall(page.read_text())):
            if re.search(r"^resources:$", fence, flags=re.MULTILINE):
                yield page, fence


PRINTED = pytest.mark.parametrize(("page", "fence"), [pytest.param(*each, id=each[0].name) for each in list_overlays()])


def write_overlay(fence: str, folder: Path) -> Path:
    overlay = copy_k8s(folder) / "overlays/printed"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(fence)
    return overlay


def secrets_of(each: Object) -> set[str]:
    """The names of the secrets that its pods mount and read."""
    volumes = pod_template(each).get("spec", {}).get("volumes", [])
    found = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    for container in containers(each):
        references = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
        references += [source.get("secretRef") for source in container.get("envFrom", [])]
        found |= {reference["name"] for reference in references if reference}
    return found


def check_overlay(found: list[Object], page: Path) -> None:
    check_manifests(found)
    secrets = {each["metadata"]["name"] for each in found if each["kind"] == "Secret"}
    for each in found:
        if each["kind"] != "Namespace":
            assert each["metadata"].get("namespace") == "dipole", f"{each['kind']} {each['metadata']['name']}"
        for missing in secrets_of(each) - secrets:
            command = rf"^kubectl -n dipole create secret generic {missing} "
            assert re.search(command, page.read_text(), flags=re.MULTILINE), f"nothing makes {missing}"


def test_the_page_on_kubernetes_prints_one() -> None:
    assert "kubernetes.md" in {page.name for page, _ in list_overlays()}


def test_the_page_says_how_everything_but_data_is_removed() -> None:
    """Each kind that an overlay makes is deleted by a command, but for claims and what weighs nothing."""
    made = {each["kind"].lower() for path in ROOT.glob("k8s/overlays/*") for each in build(path)}
    page = (ROOT / "docs/kubernetes.md").read_text()
    deletes = re.findall(r"^kubectl -n dipole delete ([a-z,]+) --all", page, re.MULTILINE)
    deleted = {kind for told in deletes for kind in told.replace("hpa", "horizontalpodautoscaler").split(",")}
    assert made - deleted == {"namespace", "persistentvolumeclaim", "secret", "configmap"}
    assert deleted <= made


@PRINTED
def test_a_printed_overlay_works(page: Path, fence: str, tmp_path: Path) -> None:
    """All is in our namespace, and each secret that a pod names is made: by the overlay, or by a command beside it."""
    check_overlay(build(write_overlay(fence, tmp_path)), page)


@needs_kubectl
@PRINTED
def test_kubectl_makes_it_work(page: Path, fence: str, tmp_path: Path) -> None:
    """The same by the real one, which names secrets by what is in them."""
    made = yaml.safe_load_all(run_kubectl(write_overlay(fence, tmp_path)))
    check_overlay([each for each in made if each], page)
