"""What the API server would refuse of a manifest, as far as it can be told without one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import kubernetes_validate

from .kustomize import Object

WITHOUT_SCHEMA = {"ScaledObject"}  # KEDA's: test_autoscaling.py
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|Mi|Gi)?")  # those that k8s/ uses
UNITS = {None: 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}


def check_manifests(found: Iterable[Object]) -> None:
    """Schemas, names and quantities. Raises AssertionError that says which object is wrong."""
    objects = list(found)
    identities = Counter((each["kind"], each["metadata"]["name"]) for each in objects)
    assert max(identities.values()) == 1, f"twice: {identities.most_common(1)[0][0]}"
    for each in objects:
        identity = f"{each['kind']} {each['metadata']['name']}"
        _check_schema(each, identity)
        assert NAME.fullmatch(each["metadata"]["name"]), f"{identity}: no name that the API takes"
        for resources in _find_resources(each):
            for name, quantity in (pair for told in resources.values() for pair in told.items()):
                assert QUANTITY.fullmatch(str(quantity)), f"{identity}: {name} {quantity!r} is no quantity"
            for name, limit in resources.get("limits", {}).items():
                request = resources.get("requests", {}).get(name, limit)
                assert parse_quantity(request) <= parse_quantity(limit), f"{identity}: it asks for more than its {name}"


def parse_quantity(quantity: object) -> float:
    """In cores, bytes or pieces."""
    found = QUANTITY.fullmatch(str(quantity))
    assert found, quantity
    return float(found[1]) * UNITS[found[2]]


def _check_schema(each: Object, identity: str) -> None:
    if each["kind"] in WITHOUT_SCHEMA:
        return
    try:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        raise AssertionError(f"{identity}: {list(error.path)}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise AssertionError(f"{identity}: {error.message}") from error


def _find_resources(part: Any) -> Iterator[dict[str, dict[str, object]]]:
    """Every `resources` of containers and claims: requests and limits."""
    if isinstance(part, dict):
        if isinstance(told := part.get("resources"), dict):
            yield told
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _find_resources(inner)
