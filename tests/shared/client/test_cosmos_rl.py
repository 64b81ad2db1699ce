"""cosmos-rl's enqueue and pull through the one client, against a scripted service in their shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient, StillPending
from dipole.errors import InvalidInput
from dipole.protocol.schemas import Ranking

from ...foreign_servers import CosmosServer

IMAGES = [np.full((6, 4, 3), 50 * index, np.uint8) for index in range(3)]


def client_of(server: CosmosServer, **options: Any) -> RankClient:
    chosen = {"reward": server.reward, "revision": "r7", **options}
    return RankClient(
        Endpoint(url=server.url, kind="cosmos-rl-reward", options=chosen, key=SecretStr("a-key-of-enough-letters"))
    )


def ask(server: CosmosServer, metadata: dict[str, Any] | None = None, **options: Any) -> Ranking:
    with server, client_of(server, **options) as client:
        return client.rank("a\nred square", IMAGES, metadata, idempotency_key="q1", deadline_s=20)


def test_a_batch_is_enqueued_as_a_line_of_json_and_an_array_and_pulled_until_it_is_scored() -> None:
    """The prompt for each image, one reward, the media type; K×H×W×3 bytes that hold no pickle; the key on each."""
    server = CosmosServer()
    ranking = ask(server)
    assert [(item.score, item.rank) for item in ranking.results] == [(0.0, 3), (50.0, 2), (100.0, 1)]
    assert (ranking.model, ranking.model_revision, ranking.recipe_version) == ("brightness", "r7", "cosmos-rl-reward/1")
    ((described, batch),) = server.enqueued
    assert described == {"prompts": ["a\nred square"] * 3, "reward_fn": {"brightness": 1.0}, "media_type": "image"}
    assert np.array_equal(batch, np.stack(IMAGES))
    paths = [path.rpartition("/")[2] for path, _, _ in server.asked]
    assert paths == ["ping", "enqueue", "pull", "pull"]
    assert all(headers["authorization"] == "Bearer a-key-of-enough-letters" for _, headers, _ in server.asked)


def test_what_a_prompt_asks_for_goes_along_as_geneval_says_it() -> None:
    """For their gen_eval reward: a tag and what is to be seen, for each image; other metadata has no place there."""
    include = [{"class": "dog", "count": 1}]
    server = CosmosServer()
    ask(server, {"tag": "single_object", "include": include, "note": "x"})
    described = server.enqueued[0][0]
    assert (described["geneval_tags"], described["geneval_includes"]) == (["single_object"] * 3, [include] * 3)
    assert "note" not in described


def test_a_pending_batch_is_looked_at_by_its_location_from_anywhere() -> None:
    """Another client, of another process, pulls it, of the replica that took it; withdrawing it asks nothing."""
    server = CosmosServer(replica="replica-7")
    with server:
        with client_of(server) as client, pytest.raises(StillPending) as pending:
            client.rank("p", IMAGES, poll=False, retry=False)
        with client_of(server) as other:
            with pytest.raises(StillPending):
                other.rank("p", IMAGES, poll=False, retry=False, location=pending.value.location)
            assert other.rank("p", IMAGES, poll=False, location=pending.value.location).results[2].rank == 1
            seen = len(server.asked)
            other.withdraw_ranking(pending.value.location)
    assert len(server.asked) == seen
    assert [headers.get("x-lepton-replica-target") for _, headers, _ in server.asked] == [None] * 2 + ["replica-7"] * 2


def test_a_metric_among_several_must_be_named_and_the_others_are_sub_scores() -> None:
    """Nothing is guessed; what is no number for each image, as groups of tags, is left out."""

    def many(answer: dict[str, Any]) -> tuple[int, Any]:
        scores = {"score": [0.0, 1.0, 2.0], "strict": [1, 0, 0], "group": {"counting": [-10.0] * 3}, "said": ["a"] * 3}
        return 200, {**answer, "scores": scores}

    with pytest.raises(EndpointError, match=r"options\.metric"):
        ask(CosmosServer(pulled=many))
    ranking = ask(CosmosServer(pulled=many), metric="score")
    assert [item.score for item in ranking.results] == [0, 1, 2]
    assert ranking.results[0].sub_scores == {"score": 0.0, "strict": 1.0}


def test_a_failure_that_the_service_tells_is_told_in_its_words() -> None:
    """Scores are null and the reason stands beside them."""
    said = {"error": "[hpsv2] images tensor is None.", "scores": None}
    with pytest.raises(EndpointError, match="images tensor is None") as caught:
        ask(CosmosServer(pulled=lambda answer: (200, {**answer, **said})))
    assert (caught.value.code, caught.value.retryable) == ("http_status", False)


WRONG: dict[str, tuple[Any, str]] = {
    "too few": ([1.0, 2.0], "invalid_response"),
    "too many": ([1.0, 2.0, 3.0, 4.0], "invalid_response"),
    "one number": (1.0, "invalid_response"),
    "text": (["1", "2", "3"], "invalid_response"),
    "true": ([True, 1, 2], "invalid_response"),
    "null": ([None, 1, 2], "invalid_response"),
    "lists": ([[1], [2], [3]], "invalid_response"),
    "nan": ([float("nan"), 1, 2], "not_finite"),
    "a huge integer": ([10**400, 1, 2], "invalid_response"),
}


@pytest.mark.parametrize(("values", "code"), WRONG.values(), ids=WRONG)
def test_whatever_is_not_a_score_of_each_image_is_refused(values: Any, code: str) -> None:
    """One code, and no number made up."""
    server = CosmosServer(pulled=lambda answer: (200, {**answer, "scores": {"brightness": values}}))
    with pytest.raises(EndpointError) as caught:
        ask(server)
    assert (caught.value.code, caught.value.retryable) == (code, False)


@pytest.mark.parametrize(
    ("pulled", "said"),
    [
        ((200, {"scores": {"brightness": [1, 2, 3]}, "type": "hpsv2"}), "scores of 'hpsv2'"),
        ((200, {"scores": {"brightness": [1, 2, 3]}}), "type"),
        ((200, ["x"]), "invalid CosmosScores"),
        ((400, {"message": "bad uuid"}), "400: bad uuid"),
        ((401, {"message": "no such key"}), "401: no such key"),
    ],
)
def test_answers_of_other_things_are_refused(pulled: tuple[int, Any], said: str) -> None:
    """Another reward's scores, no reward's, no object, a refusal that is not "not found yet"."""
    with pytest.raises(EndpointError, match=said):
        ask(CosmosServer(pulled=lambda _: pulled))


def test_a_reward_that_is_not_enabled_there_stays_pending_and_the_deadline_says_what_may_be_wrong() -> None:
    """The service logs it and answers "not found" for ever."""
    server = CosmosServer("hpsv2")
    with server, client_of(server, reward="hpsv3") as client, pytest.raises(EndpointError) as caught:
        client.rank("p", IMAGES, deadline_s=1.5)
    assert caught.value.code == "timeout"
    assert "options.reward" in str(caught.value)


def test_images_of_several_sizes_are_refused_here() -> None:
    """They are one array there."""
    server = CosmosServer()
    with server, client_of(server) as client, pytest.raises(EndpointError, match="one size"):
        client.rank("p", [*IMAGES, np.zeros((8, 8, 3), np.uint8)], deadline_s=5)
    assert not server.enqueued


def test_a_location_of_another_host_is_refused() -> None:
    """The key would be sent there."""
    server = CosmosServer()
    with server, client_of(server) as client, pytest.raises(InvalidInput):
        client.rank("p", IMAGES, location="http://127.0.0.2:1/api/reward/pull?uuid=x")
