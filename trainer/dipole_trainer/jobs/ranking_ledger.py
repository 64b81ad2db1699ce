"""The ledger: every ranking that a job trained on, enough to audit it, to replay it, and to export it as preferences.

A group is kept once (prompt, metadata, seeds, a hash per candidate), with a row for each reward's scores and the
revision that gave them. A resumed job asks some questions again: the later answer replaces the earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.queries import found, page
from dipole_trainer.database.tables import RankedGroup, Ranking
from dipole_trainer.jobs.leases import Claim, held
from dipole_trainer.jsonable import plain
from dipole_trainer.ranking.groups import Group, RewardResult


class Ledger:
    """Rankings of jobs, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def keep(self, claim: Claim, entry: Mapping[str, Any]) -> None:
        """Keep what `entry` made, perhaps on another process. Raises LeaseLost."""
        with self.database.writing() as session:
            held(session, claim)
            group = {"job_id": claim.job_id, "group_id": entry["group_id"]}
            seq = self._upsert(session, RankedGroup, group, entry["group"], RankedGroup.seq)
            ranking = {"group_seq": seq, "reward": entry["reward"]}
            self._upsert(session, Ranking, ranking, entry["ranking"], Ranking.group_seq)

    def list(self, job_id: str, *, after: int = 0, limit: int = 20) -> tuple[Sequence[dict[str, Any]], bool]:
        """Groups in the order they were ranked, each with its rewards' scores; `after` is the last `cursor` seen."""
        query = select(RankedGroup).where(RankedGroup.job_id == job_id, RankedGroup.seq > after)
        with self.database.reading() as session:
            groups, more = page(session.scalars(query.order_by(RankedGroup.seq).limit(limit + 1)).all(), limit)
            rows = session.scalars(select(Ranking).where(Ranking.group_seq.in_([group.seq for group in groups]))).all()
        return [_entry(group, [row for row in rows if row.group_seq == group.seq]) for group in groups], more

    def _upsert(
        self,
        session: Session,
        table: type[RankedGroup | Ranking],
        key: dict[str, Any],
        values: Mapping[str, Any],
        out: Any,
    ) -> int:
        dialect = sqlite if self.database.is_sqlite() else postgresql
        assert isinstance(table.__table__, Table)
        insert = dialect.insert(table.__table__).values(**key, **values, created_at=now())
        upsert = insert.on_conflict_do_update(index_elements=list(key), set_={**values, "created_at": now()})
        return int(found(session.scalar(upsert.returning(out)), "row"))


def entry(group: Group, reward: str, result: RewardResult) -> dict[str, Any]:
    """One reward's answer for one group as JSON: the rows' values, with hashes for the images."""
    return {
        "group_id": group.id,
        "group": {
            "step": group.step,
            "prompt": plain(group.prompt),
            "prompt_metadata": plain(group.metadata),
            "seeds": plain(group.seeds),
            "candidates": [hashlib.sha256(image.tobytes()).hexdigest() for image in group.images],
        },
        "reward": reward,
        "ranking": {
            "scores": plain(result.scores),
            "sub_scores": plain(result.sub_scores),
            "errors": plain(result.errors),
            "failure": plain(result.failure),
            "model": plain(result.model),
            "model_revision": plain(result.model_revision),
            "recipe_version": plain(result.recipe_version),
            "seconds": result.seconds,
        },
    }


def _entry(group: RankedGroup, rankings: Sequence[Ranking]) -> dict[str, Any]:
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
