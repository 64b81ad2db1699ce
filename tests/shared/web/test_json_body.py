"""JSON is bounded before anything is built of it, and faults in it are counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from dipole.client.endpoint import Endpoint
from dipole.errors import TooLarge
from dipole.protocol.schemas import MAX_FIELD_ERRORS, RankRequest
from dipole.web import json_body
from dipole_trainer.spec import TrainSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("value", [1, [], {}, [[], []], {"a": {"b": [1, 2]}}, [{"a": "x"}] * 5, "a,[{"])
def test_values_are_never_undercounted(value: Any) -> None:
    """An array, an object and what stands in them: whatever is built was counted."""

    def built(each: Any) -> int:
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        return 1 + sum(map(built, inner))

    assert json_body.count_values(json.dumps(value).encode()) >= built(value)


async def test_too_many_values_or_keys_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """TooLarge, and nothing was built."""
    monkeypatch.setattr(json_body, "MAX_VALUES", 100)
    builder = json_body.JSONBuilder(max_keys=10)
    assert await builder.build(json.loads, b"[" + b"1," * 50 + b"1]") == [1] * 51
    for body in (b"[" + b"1," * 100 + b"1]", b"[" * 101, json.dumps({str(n): n for n in range(11)}).encode()):
        with pytest.raises(TooLarge, match="send fewer"):
            await builder.build(pytest.fail, body)


@pytest.mark.parametrize("kind", [RankRequest, TrainSpec, Endpoint])
def test_unknown_fields_are_named_when_few_and_counted_when_many(kind: Any) -> None:
    """An error takes a kilobyte of memory: there are never more than a screenful."""
    for many in (3, 100_000):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate({f"x{n}": n for n in range(many)})
        assert caught.value.error_count() <= MAX_FIELD_ERRORS + len(kind.model_fields)
        assert "x0" in str(caught.value)
