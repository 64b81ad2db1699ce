"""The one check of JSON that is the caller's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dipole.errors import InvalidInput
from dipole.protocol.validation import check_storable


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (r'{"a": "\ud83d"}', "metadata.a"),
        (r'{"a": [1, {"b": "x\udc00"}]}', "metadata.a[1].b"),
        (r'{"a": {"\ud83d": 1}}', "metadata.a"),
        (r'{"\u0000": 1}', "metadata"),
        (r'{"a": "\u0000"}', "metadata.a"),
        ('{"a": NaN}', "metadata.a"),
        ('{"a": [0, -1e999]}', "metadata.a[1]"),
    ],
)
def test_what_no_store_can_hold_is_named_where_it_is(text: str, where: str) -> None:
    """Half of a character, NUL and what is no number: as a value or as a key, however deep."""
    with pytest.raises(InvalidInput, match="cannot be stored") as caught:
        check_storable(json.loads(text), "metadata")
    assert caught.value.field == where
    str(caught.value).encode()


@pytest.mark.parametrize("value", [None, {}, {"a": [True, 1, 2.5, "é", "😀", {"": None}]}, {"n": 10**400}, ("x",)])
def test_what_json_can_say_is_storable(value: Any) -> None:
    check_storable(value)
