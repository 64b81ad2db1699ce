"""docs/protocol.md says what is so: its documents are valid, its numbers the code's, its table of checks whole."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from dipole.client import rank_client
from dipole.client.connection import RETRIED_STATUSES
from dipole.conformance import answers, assertions, under_load
from dipole.conformance.reports import tables
from dipole.protocol import schemas
from dipole.protocol.schemas import (
    LatentSpace,
    PendingRanking,
    Problem,
    Ranking,
    RankRequest,
    RewardInfo,
    WeightsState,
)

from ..conformance import bent_server

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/protocol.md").read_text()
MESSAGES = {
    kind.__name__: kind
    for kind in (LatentSpace, PendingRanking, Problem, Ranking, RankRequest, RewardInfo, WeightsState)
}
EXAMPLES = dict(re.findall(r"<!-- ([^>]+) -->\n```json\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with bent_server.served() as (url, _):
        yield url


def test_every_document_is_valid() -> None:
    """Each JSON block is labelled with its message and is one; every message of the protocol has an example."""
    assert PAGE.count("```json") == len(EXAMPLES)
    assert {label.partition(",")[0] for label in EXAMPLES} == set(MESSAGES)
    for label, text in EXAMPLES.items():
        MESSAGES[label.partition(",")[0]].model_validate_json(text)


def test_the_rankings_pass_the_rules() -> None:
    """Both answers keep order, ranks and nulls as the suite demands; ranks alone only where nothing is calibrated."""
    scored, alone = (Ranking.model_validate_json(EXAMPLES[label]) for label in ("Ranking", "Ranking, ranks alone"))
    assertions.check_results(scored, ["c0", "c1"], calibrated=True)
    assertions.check_results(alone, ["c0", "c1", "c2"], calibrated=False)
    with pytest.raises(assertions.CheckFailed, match="calibrated: false"):
        assertions.check_results(alone, ["c0", "c1", "c2"], calibrated=True)


def test_the_request_is_answered(url: str) -> None:
    """The page's request, sent as it stands to our service, is ranked; as multipart too, by its curl line."""
    key = {"authorization": f"Bearer {bent_server.KEY}"}
    request = json.loads(EXAMPLES["RankRequest"])
    plain = httpx.post(f"{url}/v1/rank", json=request, headers=key, trust_env=False)
    (part,) = re.findall(r"-F 'request=(\{.*\})'", PAGE)
    png = base64.b64decode(request["candidates"][0]["image"]["data"])
    files = {"c0": ("c0.png", png, "image/png")}
    parts = httpx.post(f"{url}/v1/rank", data={"request": part}, files=files, headers=key, trust_env=False)
    for answer in (plain, parts):
        assert answer.status_code == 200, answer.text
        Ranking.model_validate_json(answer.content)


def test_the_numbers_are_the_code_s() -> None:
    """Limits and defaults on the page are those of schemas, client and suite."""
    fields = RewardInfo.model_fields
    assert f"Default {fields['max_candidates'].default} and {fields['max_pixels'].default}" in PAGE
    assert (fields["calibrated"].default, fields["multipart"].default) == (True, True)
    assert f"| prompt | {schemas.MAX_PROMPT_CHARS:,} characters |" in PAGE
    assert f"| answer that a trainer reads | {rank_client.MAX_RESPONSE_BYTES // 2**20} MiB |" in PAGE
    assert f"| {', '.join(map(str, sorted(RETRIED_STATUSES)))} |" in PAGE
    assert under_load.HEALTH_TIMEOUT_S == 2
    assert "`missing_metadata`" in PAGE
    assert "missing_metadata" in Path(answers.__file__).read_text()
    for kind, name, row in ((schemas.Candidate, "id", "| id |"), (RewardInfo, "model", "`recipe_version` |")):
        assert f"{row} {kind.model_json_schema()['properties'][name]['maxLength']} characters" in PAGE


def test_the_table_of_checks_is_what_runs() -> None:
    """Name, level and fact of every check: `dipole.conformance.reports.tables.checks_table()` printed."""
    assert PAGE.rstrip().endswith(tables.checks_table())


def test_callbacks_are_signed_as_it_says() -> None:
    """The formula on the page gives the signature that our service sends."""
    secret, body, now = "whsec_" + base64.b64encode(b"k" * 24).decode(), '{"type": "x"}', datetime.now(UTC)
    text = f"msg_1.{int(now.timestamp())}.{body}".encode()
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), text, hashlib.sha256).digest()
    assert Webhook(secret).sign("msg_1", now, body) == f"v1,{base64.b64encode(mac).decode()}"
