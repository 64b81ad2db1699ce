"""Callers' API keys: stored as hashes, with scopes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select, update

from dipole.database.queries import database_time, require
from dipole.web.auth import hash_key
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import ApiKeyRow

KeyScope = Literal["train", "admin", "rate"]


class ApiKeys:
    """The rows of callers' keys, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create_key(self, name: str, scopes: Sequence[KeyScope]) -> tuple[ApiKeyRow, str]:
        """A new key's row and its text, which is shown this once."""
        text = f"dipole-{secrets.token_urlsafe(32)}"
        row = ApiKeyRow(id=f"key-{secrets.token_hex(8)}", name=name, sha256=hash_key(text), scopes=list(scopes))
        with self.database.writing() as session:
            row.created_at = database_time(session)
            session.add(row)
        return row, text

    def list_keys(self) -> Sequence[ApiKeyRow]:
        with self.database.reading() as session:
            return session.scalars(
                select(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None)).order_by(ApiKeyRow.created_at)
            ).all()

    def revoke_key(self, key_id: str) -> None:
        revoke = (
            update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=now())
        )
        with self.database.writing() as session:
            require(session.scalar(revoke.returning(ApiKeyRow.id)), key_id, "key")

    def find_key(self, digest: str) -> ApiKeyRow | None:
        """The key with this hash, and what it may do; None for an unknown or revoked one."""
        query = select(ApiKeyRow).where(ApiKeyRow.sha256 == digest, ApiKeyRow.revoked_at.is_(None))
        with self.database.reading() as session:
            return session.scalar(query)
