"""What jobs are made from: uploaded files of prompts, registered reward endpoints, and callers' keys.

A file's bytes are an artifact, its row is here. A reward's URL must be on an allowed host, whoever names it; its key is
stored to be sent to it and never shown. A caller's key is stored as a hash.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Literal
from urllib.parse import urlsplit

import httpx
from sqlalchemy import delete, select, update

from dipole.errors import Conflict, InvalidInput
from dipole.web import key_digest
from dipole_trainer.database import Database, now
from dipole_trainer.jobs import ACTIVE
from dipole_trainer.models import ApiKey, File, Job, Reward
from dipole_trainer.transitions import found, page, time_of

SCOPES = ("train", "admin", "rate")
KeyScope = Literal["train", "admin", "rate"]
FileKind = Literal["prompts", "pairs"]


def check_reward_url(url: str, hosts: Collection[str], *, field: str) -> str:
    """The base URL without a trailing slash. Raises InvalidInput unless it is plain HTTP(S) on an allowed host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)  # what asks it must take it too: it refuses more, unprintable characters for one
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidInput(f"{field} is not a URL: {error}", field=field) from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidInput(f"{field} must look like http://host:port", field=field)
    if parts.username is not None or parts.query or parts.fragment or "\\" in url or any(c <= " " for c in url):
        raise InvalidInput(f"{field} may hold a host, a port and a path, nothing else", field=field)
    if not any(_allows(allowed, host) for allowed in hosts):
        raise InvalidInput(f"{field} names host {host}, which DIPOLE_REWARD_HOSTS does not allow", field=field)
    return url.rstrip("/")


def _allows(allowed: str, host: str) -> bool:
    """`*.` stands for any host below a domain; nothing else is a pattern."""
    allowed, host = allowed.lower().strip("[]"), host.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


class Catalogue:
    """Files, rewards and keys, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- files --------------------------------------------------------------------------------------------------

    def add_file(
        self, file_id: str, filename: str, *, size: int, lines: int, sha256: str, kind: FileKind = "prompts"
    ) -> File:
        row = File(
            id=file_id, filename=filename, purpose="fine-tune", bytes=size, lines=lines, sha256=sha256, kind=kind
        )
        with self.database.writing() as session:
            row.created_at = time_of(session)
            session.add(row)
        return row

    def file(self, file_id: str) -> File:
        with self.database.reading() as session:
            return found(session.scalar(select(File).where(File.id == file_id)), file_id, "file")

    def files(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = True
    ) -> tuple[Sequence[File], bool]:
        query = select(File).order_by(File.seq.desc() if newest_first else File.seq)
        with self.database.reading() as session:
            if after is not None:
                seen = found(session.scalar(select(File.seq).where(File.id == after)), after, "file")
                query = query.where(File.seq < seen if newest_first else File.seq > seen)
            return page(session.scalars(query.limit(limit + 1)).all(), limit)

    def delete_file(self, file_id: str) -> None:
        """Jobs keep their own copy of prompts, but read pairs while they train. Raises Conflict while one does."""
        with self.database.writing() as session:
            active = select(Job).where(Job.state.in_(ACTIVE), Job.training_file == file_id)
            for job in session.scalars(active):
                if job.summary.get("pairs_file") == file_id:
                    raise Conflict(
                        f"file {file_id} is trained on by job {job.id}, which is {job.state}: cancel it first"
                    )
            found(session.scalar(delete(File).where(File.id == file_id).returning(File.id)), file_id, "file")

    # ---- rewards ------------------------------------------------------------------------------------------------

    def put_reward(self, name: str, url: str, *, key: str | None, description: str = "") -> Reward:
        """Register an endpoint, or point a registered name elsewhere; running jobs ask the new one when they resume."""
        with self.database.writing() as session:
            row = session.get(Reward, name, with_for_update=True)
            if row is None:
                row = Reward(name=name, created_at=time_of(session))
                session.add(row)
            row.url, row.key, row.description = url, key, description
        return row

    def reward(self, name: str) -> Reward:
        with self.database.reading() as session:
            return found(session.get(Reward, name), name, "reward")

    def rewards(self) -> Sequence[Reward]:
        with self.database.reading() as session:
            return session.scalars(select(Reward).order_by(Reward.name)).all()

    def delete_reward(self, name: str) -> None:
        with self.database.writing() as session:
            found(session.get(Reward, name, with_for_update=True), name, "reward")
            active = select(Job).where(Job.state.in_(ACTIVE))
            for job in session.scalars(active):
                if any(used["name"] == name and used["url"] is None for used in job.summary["rewards"]):
                    raise Conflict(f"reward {name} is used by job {job.id}, which is {job.state}: cancel it first")
            session.execute(delete(Reward).where(Reward.name == name))

    # ---- keys ---------------------------------------------------------------------------------------------------

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
