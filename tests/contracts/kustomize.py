"""What `kubectl kustomize` makes of k8s/, as far as k8s/ uses it, so that the contract tests need no kubectl.

Generated names carry no hash, and a generated secret's content is that of its example. Anything else that stands in a
kustomization is an error here. `test_kustomize_agrees` compares with the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "components", "labels", "images", "patches",
    "configMapGenerator", "secretGenerator",
}  # fmt: skip
SELECTORS = ("spec.selector.matchLabels", "spec.template.metadata.labels")


class _Loader(yaml.SafeLoader):
    """As kubectl reads YAML: a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"a key stands twice{node.start_mark}"
        return super().construct_mapping(node, deep)


def load(path: Path) -> list[Object]:
    return [each for each in yaml.load_all(path.read_text(), Loader=_Loader) if each]


def kustomization(folder: Path) -> Object:
    (only,) = load(folder / "kustomization.yaml")
    assert only.keys() <= KNOWN, folder
    return only


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization, in no particular order."""
    found = list[Object]()
    _change(found, folder, kustomization(folder))
    identities = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(identities) == len(set(identities)), f"{folder}: two objects of one name"
    return found


def _change(found: list[Object], folder: Path, told: Object) -> None:
    """What a kustomization or a component does to what was found so far, in kustomize's order."""
    for name in told.get("resources", []):
        path = folder / name
        found += build(path) if path.is_dir() else load(path)
    for name in told.get("components", []):
        _change(found, folder / name, kustomization(folder / name))
    for each, behavior in _generated(folder, told):
        if behavior == "merge":
            _merge(_find(found, each), {"data": each["data"]})
        else:
            found.append(each)
    for patch in told.get("patches", []):
        _patch(found, folder, patch)
    for each in found:
        if "namespace" in told and each["kind"] != "Namespace":
            each["metadata"]["namespace"] = told["namespace"]
        for labels in told.get("labels", []):
            _label(each, labels["pairs"], selectors=labels.get("includeSelectors", False))
        for container in containers(each):
            for image in told.get("images", []):
                name, _, tag = container["image"].partition(":")
                if name == image["name"]:
                    container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def pod_template(each: Object) -> Object:
    spec = each.get("spec", {})
    template: Object = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
    return template


def containers(each: Object) -> list[Object]:
    spec = pod_template(each).get("spec", {})
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def _generated(folder: Path, told: Object) -> Iterator[tuple[Object, str]]:
    """What is generated, and whether it is another object or merged into one."""
    for each in told.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in each.get("files", [])}
        data |= dict(line.split("=", 1) for line in each.get("literals", []))
        metadata = {"name": each["name"], **each.get("options", {})}
        behavior = each.get("behavior", "create")
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}, behavior
    for each in told.get("secretGenerator", []):
        lines = [line for name in each["envs"] for line in (folder / f"{name}.example").read_text().splitlines()]
        data = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        metadata = {"name": each["name"]}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}, "create"


def _patch(found: list[Object], folder: Path, patch: Object) -> None:
    if "path" in patch:  # a part of an object, which names it
        for change in load(folder / patch["path"]):
            _merge(_find(found, change), change)
        return
    assert patch["patch"].startswith("- "), "what begins with [ is read as JSON"
    targets = [each for each in found if _is_target(each, patch["target"])]
    assert targets, f"{folder}: {patch['target']} is nothing"
    for each in targets:
        for change in yaml.safe_load(patch["patch"]):
            assert change["path"] != "/metadata/name" or patch.get("options", {}).get("allowNameChange")
            _apply(each, **change)


def _find(found: list[Object], named: Object) -> Object:
    chosen = [each for each in found if all(each[key] == named[key] for key in ("apiVersion", "kind"))]
    (only,) = [each for each in chosen if each["metadata"]["name"] == named["metadata"]["name"]]
    return only


def _is_target(each: Object, target: Object) -> bool:
    key, _, value = target.get("labelSelector", "").partition("=")
    metadata = each["metadata"]
    return (
        target.get("kind", each["kind"]) == each["kind"]
        and target.get("name", metadata["name"]) == metadata["name"]
        and (not key or metadata.get("labels", {}).get(key) == value)
    )


def _apply(each: Any, *, op: str, path: str, value: Any) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    for part in way:
        each = each[int(part)] if isinstance(each, list) else each[part]
    value = copy.deepcopy(value)
    if isinstance(each, list) and last == "-":
        assert op == "add"
        each.append(value)
    else:
        assert op == "add" or last in each, path
        each[last] = value


def _merge(target: Object, change: Object) -> None:
    for key, value in change.items():
        assert not (isinstance(value, list) and any(isinstance(each, dict) for each in value)), "use a JSON patch"
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _label(each: Object, pairs: dict[str, str], *, selectors: bool) -> None:
    each["metadata"].setdefault("labels", {}).update(pairs)
    if not selectors:
        return
    paths = {"Deployment": SELECTORS, "StatefulSet": SELECTORS, "Service": ("spec.selector",)}.get(each["kind"], ())
    if each["kind"] == "NetworkPolicy":
        paths = ("spec.podSelector.matchLabels",)
    for path in paths:
        inner = each
        for part in path.split("."):
            inner = inner[part]
        inner.update(pairs)
