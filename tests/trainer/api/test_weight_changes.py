"""Changes of weights over REST: what is refused, by field, and what a job shows of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

from .conftest import ADMIN_KEY

SPEC = TrainSpec(
    prompts=(PromptSpec(prompt="a red square"),),
    rewards=(RewardSpec(name="shapes"), RewardSpec(name="colour", weight=0)),
    steps=9,
)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ('{"weights": {"shapes": NaN}}', None),
        ('{"weights": {"shapes": 1e999}}', "weights.shapes"),
        ('{"weights": {"shapes": "much"}}', "weights.shapes"),
        ('{"weights": {}}', "weights"),
        ('{"weights": {"nobody": 1}}', "weights.nobody"),
        ('{"weights": {"shapes": 0}}', "weights"),
        ('{"wieghts": {"shapes": 0}}', "wieghts"),
    ],
)
def test_a_wrong_change_is_a_422_that_names_its_field(
    run_app: Callable[..., None], sent: str, field: str | None
) -> None:
    async def test(client: httpx.AsyncClient, state: Any) -> None:
        job = state.jobs.create_job(SPEC, extra={"metadata": None, "suffix": None})
        url = f"/v1/fine_tuning/jobs/{job.id}/rewards"
        answer = await client.patch(url, content=sent, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        if field is not None:
            assert field in [each["field"] for each in answer.json()["errors"]], answer.text
        assert (await client.get(url.removesuffix("/rewards"))).json()["weight_changes"] == []

    run_app(test)


def test_a_change_shows_in_its_job_and_needs_the_scope(run_app: Callable[..., None]) -> None:
    """Whoever may cancel a job may change it; others may not."""

    async def test(client: httpx.AsyncClient, state: Any) -> None:
        job = state.jobs.create_job(SPEC, extra={"metadata": None, "suffix": None})
        url = f"/v1/fine_tuning/jobs/{job.id}/rewards"
        body = {"weights": {"shapes": 0, "colour": -0.5}}
        answer = await client.patch(url, json=body)
        assert (answer.status_code, answer.json()["weight_changes"]) == (
            200,
            [{"weights": body["weights"], "step": None}],
        )
        key = (await client.post("/v1/api_keys", json={"name": "images", "scopes": ["rate"]})).json()["key"]
        refused = await client.patch(url, json=body, headers={"authorization": f"Bearer {key}"})
        assert refused.status_code == 403
        claim = state.jobs.claim_job("worker", 60)
        state.jobs.take_weight_changes(claim, 3)
        shown = (await client.get(url.removesuffix("/rewards"))).json()
        assert shown["weight_changes"] == [{"weights": body["weights"], "step": 3}]
        assert [each["weight"] for each in shown["rewards"]] == [1, 0]

    run_app(test, api_key=SecretStr(ADMIN_KEY))
