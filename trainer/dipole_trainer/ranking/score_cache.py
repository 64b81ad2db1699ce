"""Scores that a reward gave an equal group before, also of another job, so that it need not be asked again (ADR 20).

Of rewards alone that say `deterministic` in /v1/info and want to be told nothing of the training: people and sampled
judges draw lots, and other kinds of servers do not say which revision answers. A key is a hash of the endpoint, what it
says it is now (model, revision, recipe), what was shown of the group, its prompt and its metadata. Only groups whose
every image has a score are kept, so no failure is.

    ranker.submit ── find ──▶ known: the group has its answer         ──▶ counted in `saved`
                        └──▶ not known: asked, and the answer ── keep ──▶ store
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import httpx

from dipole.broker.messages import RankAnswer
from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.schemas import RewardInfo
from dipole_trainer.ranking.groups import CandidateGroup

INFO_MAX_AGE_S = 30.0  # so long an endpoint is believed to be what it said, unless an answer says otherwise
INFO_TIMEOUT_S = 2.0


class ScoreStore(Protocol):
    """Where answers lie, by key. It may forget any of them, and fail at nothing: what it cannot read is not there."""

    def find_answer(self, key: str) -> Mapping[str, Any] | None: ...

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None: ...


@dataclass
class SavedRankings:
    """What a reward was not asked: groups, and the seconds that it took to rank them when it was."""

    groups: int = 0
    seconds: float = 0.0


class ScoreCache:
    """One run's view of a ScoreStore; used by its ranker's thread. `saved` counts since `take_saved`."""

    def __init__(
        self, store: ScoreStore, *, tls_dir: Path | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._store, self._tls_dir, self._transport = store, tls_dir, transport
        self._infos: dict[str, tuple[RewardInfo | None, float]] = {}  # by reward, with when it was asked
        self._saved: dict[str, SavedRankings] = {}

    def find(self, reward: str, endpoint: Endpoint, group: CandidateGroup, images: str) -> RankAnswer | None:
        """The answer to an equal group, as a lane would push it. `images` tells what was shown of it."""
        info = self._known_info(reward, endpoint)
        if info is None or not info.deterministic or info.wants:
            return None
        identity = [info.model, info.model_revision, info.recipe_version]
        found = self._store.find_answer(_key_of(endpoint, identity, group, images))
        if found is None:
            return None
        saved = self._saved.setdefault(reward, SavedRankings())
        saved.groups, saved.seconds = saved.groups + 1, saved.seconds + found["seconds"]
        return cast(RankAnswer, {**found, "verified": info.verified, "seconds": 0.0})

    def keep(self, reward: str, endpoint: Endpoint, group: CandidateGroup, images: str, answer: RankAnswer) -> None:
        """Keep a completed answer for equal groups, unless its reward draws lots or an image has no score."""
        identity = [answer["model"], answer["model_revision"], answer["recipe_version"]]
        info, _ = self._infos.get(reward, (None, 0.0))
        if info is not None and identity != [info.model, info.model_revision, info.recipe_version]:
            del self._infos[reward]  # it is another one now
        if not answer.get("deterministic") or None in answer["scores"] or len(answer["scores"]) != len(group.images):
            return
        names = ("scores", "ordinal", "sub_scores", "errors", "model", "model_revision", "recipe_version", "seconds")
        kept = {"status": "completed", **{name: answer[name] for name in names}}  # type: ignore[literal-required]
        self._store.keep_answer(_key_of(endpoint, identity, group, images), kept)

    def take_saved(self) -> dict[str, SavedRankings]:
        """What was saved since this was last called, by reward."""
        saved, self._saved = self._saved, {}
        return saved

    def _known_info(self, reward: str, endpoint: Endpoint) -> RewardInfo | None:
        """What the endpoint says of itself; None while it does not answer, or where its kind says too little."""
        if endpoint.kind != "dipole":
            return None
        info, asked_at = self._infos.get(reward, (None, -INFO_MAX_AGE_S))
        if time.monotonic() - asked_at >= INFO_MAX_AGE_S:
            try:
                with RankClient(endpoint, tls_dir=self._tls_dir, transport=self._transport) as client:
                    info = client.fetch_info(deadline_s=INFO_TIMEOUT_S)
            except (EndpointError, ConfigurationError, InvalidInput):
                info = None  # it is asked to rank, and what is wrong is told there
            self._infos[reward] = info, time.monotonic()
        return info


def _key_of(endpoint: Endpoint, identity: list[str], group: CandidateGroup, images: str) -> str:
    substance = [endpoint.answer_identity(), identity, images, group.prompt, group.metadata]
    return hashlib.sha256(json.dumps(substance, sort_keys=True, default=dict).encode()).hexdigest()
