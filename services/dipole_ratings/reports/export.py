"""What people said, as preference pairs that the trainer takes as they are (docs/training.md): JSON lines or Parquet.

A row is two images of one answer, one in a better tier than the other; ties and unranked images make none. Beside
prompt, chosen and rejected stand the task, its job, the rater's pseudonym, the ranks in the answer, the whole answer in
tiers of candidates' ids, its revision, and whether it counted (surplus answers are kept too). Skips, gold and repeats
are left out. Rows are read a task at a time, so that an export of any length takes little memory.
"""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from dipole_ratings.database.tables import AnswerRow, ImageRow, RaterRow, SubsetRow, TaskImageRow, TaskRow
from dipole_ratings.queue.context import QueueContext

ExportFormat = Literal["jsonl", "parquet"]
MEDIA_TYPES: dict[ExportFormat, str] = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}
CHUNK_BYTES = 2**20
METADATA = ("task", "job", "rater", "revision", "counted", "chosen_rank", "rejected_rank", "tiers", "created_at")


@dataclass(frozen=True)
class ExportedPair:
    """Images are PNGs; `tiers` are candidates' ids, the best tier first."""

    prompt: str
    chosen: bytes
    rejected: bytes
    task: str
    job: str
    rater: str
    revision: int
    counted: bool
    chosen_rank: int
    rejected_rank: int
    tiers: list[list[str]]
    created_at: float

    def metadata(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in METADATA}


def read_pairs(context: QueueContext) -> Iterator[ExportedPair]:
    """Every pair, the oldest task first."""
    last = 0
    while True:
        with context.database.reading() as session:
            given = select(SubsetRow.seq).join(AnswerRow, AnswerRow.subset_seq == SubsetRow.seq)
            has_answers = given.where(SubsetRow.task_seq == TaskRow.seq).exists()
            query = select(TaskRow).where(TaskRow.seq > last, has_answers).order_by(TaskRow.seq).limit(1)
            task = session.scalar(query)
            if task is None:
                return
            pairs = list(_pairs_of_task(session, task))
        yield from pairs
        last = task.seq


def _pairs_of_task(session: Session, task: TaskRow) -> Iterator[ExportedPair]:
    pngs: dict[int, bytes] = dict(
        session.execute(
            select(TaskImageRow.position, ImageRow.png)
            .join(ImageRow, ImageRow.sha256 == TaskImageRow.sha256)
            .where(TaskImageRow.task_seq == task.seq)
        ).all()
    )
    names: dict[int, str] = {}
    for name, position in task.candidates:
        names.setdefault(position, name)
    query = (
        select(AnswerRow, RaterRow.pseudonym)
        .join(RaterRow, RaterRow.seq == AnswerRow.rater_seq)
        .join(SubsetRow, SubsetRow.seq == AnswerRow.subset_seq)
        .where(
            SubsetRow.task_seq == task.seq, AnswerRow.purpose == "task", AnswerRow.verdict == "tiers",
            AnswerRow.undone_at.is_(None),
        )
        .order_by(AnswerRow.seq)
    )  # fmt: skip
    for answer, rater in session.execute(query):
        ranks = {
            position: 1 + sum(map(len, answer.tiers[:number]))
            for number, tier in enumerate(answer.tiers)
            for position in tier
        }
        for chosen, rejected in itertools.permutations(ranks, 2):
            if ranks[chosen] < ranks[rejected]:
                yield ExportedPair(
                    prompt=task.prompt, chosen=pngs[chosen], rejected=pngs[rejected], task=task.id, job=task.job,
                    rater=rater, revision=answer.revision, counted=answer.counted, chosen_rank=ranks[chosen],
                    rejected_rank=ranks[rejected], tiers=[[names[each] for each in tier] for tier in answer.tiers],
                    created_at=answer.created_at,
                )  # fmt: skip


def write_json_lines(context: QueueContext) -> Iterator[bytes]:
    for pair in read_pairs(context):
        row = {
            "prompt": pair.prompt,
            "chosen": base64.b64encode(pair.chosen).decode(),
            "rejected": base64.b64encode(pair.rejected).decode(),
            "metadata": pair.metadata(),
        }
        yield json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def write_parquet(context: QueueContext) -> Iterator[bytes]:
    """Columns as the fields of ExportedPair, images as structs of {bytes, path}; one task a row group."""
    with tempfile.TemporaryFile() as file:
        _write_parquet_file(context, file)
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _write_parquet_file(context: QueueContext, file: BinaryIO) -> None:
    import pyarrow
    from pyarrow import parquet

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.string()), ("chosen", image), ("rejected", image), ("task", pyarrow.string()),
            ("job", pyarrow.string()), ("rater", pyarrow.string()), ("revision", pyarrow.int32()),
            ("counted", pyarrow.bool_()), ("chosen_rank", pyarrow.int32()), ("rejected_rank", pyarrow.int32()),
            ("tiers", pyarrow.list_(pyarrow.list_(pyarrow.string()))), ("created_at", pyarrow.float64()),
        ]
    )  # fmt: skip
    with parquet.ParquetWriter(file, schema) as writer:
        for _, pairs in itertools.groupby(read_pairs(context), lambda pair: pair.task):
            rows = [
                {
                    "prompt": pair.prompt,
                    "chosen": {"bytes": pair.chosen, "path": None},
                    "rejected": {"bytes": pair.rejected, "path": None},
                    **pair.metadata(),
                }
                for pair in pairs
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
