"""All rows of a database copied to another of the same tables, SQLite or PostgreSQL on either side.

What is read is one snapshot, and what is written is there whole or not at all. A backup is such a copy in an SQLite
file, whatever the platform runs on, and the same copy takes a platform from SQLite to PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import Connection, MetaData, Table, delete, func, insert, select, text

from dipole.database.engine import Database
from dipole.errors import Conflict

BATCH = 100  # rows of a statement; those of the rating service hold images


def count_rows(database: Database, metadata: MetaData) -> dict[str, int]:
    """Rows of each of these tables."""
    with database.reading() as session:
        return _count_rows(session.connection(), metadata)


def copy_rows(
    source: Database,
    target: Database,
    metadata: MetaData,
    on_rows: Callable[[int], None] = lambda count: None,
    *,
    replaced: Collection[str] = (),
) -> dict[str, int]:
    """Copy every row of these tables, which both have in this version's shape; how many of each.

    `on_rows` is told of each batch. What the target has in tables of `replaced` makes way. Raises Conflict where it has
    rows in others, and SQLAlchemyError.
    """
    level = {} if source.is_sqlite() else {"isolation_level": "REPEATABLE READ"}  # SQLite's reads are a snapshot
    with (
        source.engine.execution_options(**level).connect() as reading,
        target.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as writing,
    ):
        for name in replaced:
            writing.execute(delete(metadata.tables[name]))
        if rows := sum(_count_rows(writing, metadata).values()):
            raise Conflict(f"{target.named.name} has {rows} rows already")
        copied = {table.name: _copy_table(reading, writing, table, on_rows) for table in metadata.sorted_tables}
        if not target.is_sqlite():
            for table in metadata.sorted_tables:
                _move_sequence(writing, table)
    return copied


def _count_rows(connection: Connection, metadata: MetaData) -> dict[str, int]:
    counts = {table.name: select(func.count()).select_from(table) for table in metadata.sorted_tables}
    return {name: connection.scalar(count) or 0 for name, count in counts.items()}


def _copy_table(reading: Connection, writing: Connection, table: Table, on_rows: Callable[[int], None]) -> int:
    count = 0
    rows = reading.execution_options(yield_per=BATCH).execute(select(table)).mappings()
    for batch in rows.partitions():
        writing.execute(insert(table), [dict(row) for row in batch])
        count += len(batch)
        on_rows(len(batch))
    return count


def _move_sequence(connection: Connection, table: Table) -> None:
    """PostgreSQL's next number of a table that was given its numbers."""
    if (column := table.autoincrement_column) is None:
        return
    newest = connection.scalar(select(func.max(column)))
    connection.execute(
        text("SELECT setval(pg_get_serial_sequence(:table, :column), :value, :used)"),
        {"table": table.name, "column": column.name, "value": newest or 1, "used": newest is not None},
    )
