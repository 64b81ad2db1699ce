"""The ledger: every ranking that a job trained on, enough to audit it, to replay it, and to export it as preferences.

A group is kept once (prompt, metadata, seeds, a hash per candidate), with a row for each reward's scores and the
revision that gave them. A resumed job ranks some groups again: the later answer replaces the earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dipole.database.queries import page_of_rows, require
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import RankedGroupRow, RankingRow
from dipole_trainer.jobs.leases import Claim, lock_claimed_job
from dipole_trainer.jsonable import to_jsonable
from dipole_trainer.ranking.groups import TWIN, CandidateGroup, RewardResult
from dipole_trainer.ranking.lazy_images import LazyImages

EVALUATION_GROUPS = "%.eval%"  # their ids, which evaluation/scoring.py gives
_TRAINED_ON = (RankedGroupRow.group_id.not_like(EVALUATION_GROUPS), RankedGroupRow.group_id.not_like(f"%{TWIN}"))
LEDGER_REPORT = "ranked"  # what a process of several reports beside events: an entry for the ledger


class RankingLedger:
    """Rankings of jobs, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def keep_ranking(self, claim: Claim, entry: Mapping[str, Any]) -> None:
        """Keep what `make_ledger_entry` made, perhaps on another process. Raises LeaseLost."""
        with self.database.writing() as session:
            lock_claimed_job(session, claim)
            group = {"job_id": claim.job_id, "group_id": entry["group_id"]}
            seq = self._upsert(session, RankedGroupRow, group, entry["group"], RankedGroupRow.seq)
            ranking = {"group_seq": seq, "reward": entry["reward"]}
            self._upsert(session, RankingRow, ranking, entry["ranking"], RankingRow.group_seq)

    def list_groups(
        self, job_id: str, *, step: int | None = None, after: int = 0, limit: int = 20
    ) -> tuple[Sequence[dict[str, Any]], bool]:
        """Groups in the order they were ranked, each with its rewards' scores; `after` is the last `cursor` seen.

        With `step`, those that it trained on alone: a step's evaluation ranks groups too.
        """
        query = select(RankedGroupRow).where(RankedGroupRow.job_id == job_id, RankedGroupRow.seq > after)
        if step is not None:
            query = query.where(RankedGroupRow.step == step, *_TRAINED_ON)
        with self.database.reading() as session:
            groups, more = page_of_rows(
                session.scalars(query.order_by(RankedGroupRow.seq).limit(limit + 1)).all(), limit
            )
            rows = session.scalars(
                select(RankingRow).where(RankingRow.group_seq.in_([group.seq for group in groups]))
            ).all()
        return [_to_ledger_object(group, [row for row in rows if row.group_seq == group.seq]) for group in groups], more

    def ranked_steps(self, job_id: str) -> tuple[int, int] | None:
        """The first and the last step that a group was ranked for, evaluations left out; None where none was."""
        query = select(RankedGroupRow.step).where(RankedGroupRow.job_id == job_id, *_TRAINED_ON)
        with self.database.reading() as session:
            # each is the end of an index; min() and max() together would read all of it
            first, last = (
                session.scalar(query.order_by(end).limit(1))
                for end in (RankedGroupRow.step.asc(), RankedGroupRow.step.desc())
            )
        return None if first is None or last is None else (first, last)

    def _upsert(
        self,
        session: Session,
        table: type[RankedGroupRow | RankingRow],
        key: dict[str, Any],
        values: Mapping[str, Any],
        out: Any,
    ) -> int:
        dialect = sqlite if self.database.is_sqlite() else postgresql
        assert isinstance(table.__table__, Table)
        insert = dialect.insert(table.__table__).values(**key, **values, created_at=now())
        upsert = insert.on_conflict_do_update(index_elements=list(key), set_={**values, "created_at": now()})
        return int(require(session.scalar(upsert.returning(out)), "row"))


def make_ledger_entry(group: CandidateGroup, reward: str, result: RewardResult) -> dict[str, Any]:
    """One reward's answer for one group as JSON: the rows' values, with hashes for the images, or for the latents where
    those alone were looked at: the images may never be made.
    """
    is_decoded = not isinstance(group.images, LazyImages) or group.images.is_decoded
    sent = np.asarray(group.images) if group.latents is None or is_decoded else group.latents
    return {
        "group_id": group.id,
        "group": {
            "step": group.step,
            "prompt": to_jsonable(group.prompt),
            "prompt_metadata": to_jsonable(group.metadata),
            "seeds": to_jsonable(group.seeds),
            "candidates": [hashlib.sha256(each.tobytes()).hexdigest() for each in sent],
        },
        "reward": reward,
        "ranking": {
            "scores": to_jsonable(result.scores),
            "sub_scores": to_jsonable(result.sub_scores),
            "errors": to_jsonable(result.errors),
            "failure": to_jsonable(result.failure),
            "model": to_jsonable(result.model),
            "model_revision": to_jsonable(result.model_revision),
            "recipe_version": to_jsonable(result.recipe_version),
            "seconds": result.seconds,
        },
    }


def _to_ledger_object(group: RankedGroupRow, rankings: Sequence[RankingRow]) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.ranking",
        "cursor": group.seq,
        "group": group.group_id,
        "step": group.step,
        "prompt": group.prompt,
        "metadata": group.prompt_metadata,
        "seeds": group.seeds,
        "candidates": group.candidates,
        "created_at": int(group.created_at),
        "rewards": {
            row.reward: {
                "scores": row.scores,
                "sub_scores": row.sub_scores,
                "errors": row.errors,
                "failure": row.failure,
                "model": row.model,
                "model_revision": row.model_revision,
                "recipe_version": row.recipe_version,
                "seconds": row.seconds,
            }
            for row in rankings
        },
    }
