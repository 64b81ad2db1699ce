"""Callers' API keys: stored as hashes, with scopes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select, update

from dipole.web.auth import key_digest
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.queries import found, time_of
from dipole_trainer.database.tables import ApiKey

KeyScope = Literal["train", "admin", "rate"]


class ApiKeys:
    """The rows of callers' keys, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create_key(self, name: str, scopes: Sequence[KeyScope]) -> tuple[ApiKey, str]:
        """A new key's row and its text, which is shown this once."""
        text = f"dipole-{secrets.token_urlsafe(32)}"
        row = ApiKey(id=f"key-{secrets.token_hex(8)}", name=name, sha256=key_digest(text), scopes=list(scopes))
        with self.database.writing() as session:
            row.created_at = time_of(session)
            session.add(row)
        return row, text

    def api_keys(self) -> Sequence[ApiKey]:
        with self.database.reading() as session:
            return session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at)).all()

    def revoke_key(self, key_id: str) -> None:
        revoke = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=now())
        with self.database.writing() as session:
            found(session.scalar(revoke.returning(ApiKey.id)), key_id, "key")

    def scopes_of(self, digest: str) -> frozenset[str]:
        """What the key with this hash may do; nothing for an unknown or revoked one."""
        query = select(ApiKey.scopes).where(ApiKey.sha256 == digest, ApiKey.revoked_at.is_(None))
        with self.database.reading() as session:
            return frozenset(session.scalar(query) or ())
