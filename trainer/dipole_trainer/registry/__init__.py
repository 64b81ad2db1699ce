"""What jobs are made from: uploaded files of prompts, registered reward endpoints, and callers' keys.

A file's bytes are an artifact, its row is here. A reward's URL must be on an allowed host, whoever names it; its key is
stored, encrypted where a vault has a key for it, to be sent to it and never shown. A caller's key is stored as a hash.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Any, Literal

from sqlalchemy import delete, select, update

from dipole.client.endpoint import Endpoint, check_reward_url, options_of
from dipole.errors import ConfigurationError, Conflict
from dipole.web import key_digest
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import ApiKey, File, Job, Reward
from dipole_trainer.jobs.store import ACTIVE
from dipole_trainer.jobs.transitions import found, page, time_of
from dipole_trainer.registry.vault import Vault
from dipole_trainer.spec import RewardSpec

SCOPES = ("train", "admin", "rate")
KeyScope = Literal["train", "admin", "rate"]
FileKind = Literal["prompts", "pairs"]


class Catalogue:
    """Files, rewards and keys, over one Database. `vault` seals endpoints' keys; absent: the environment's."""

    def __init__(self, database: Database, vault: Vault | None = None) -> None:
        self.database = database
        self._vault = vault or Vault.of_process()

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

    def put_reward(self, name: str, endpoint: Endpoint, *, description: str = "") -> tuple[Reward, list[str] | None]:
        """Register an endpoint, or point a registered name elsewhere; running jobs ask the new one when they resume.

        The row, and the fields that are other than before; None when it is new.
        """
        options = options_of(endpoint.kind, endpoint.options).model_dump(mode="json", exclude_unset=True)
        values = {**endpoint.record(), "options": options, "description": description}
        stored = {**values, "key": self._vault.seal(values["key"]) if values["key"] else None}
        with self.database.writing() as session:
            row = session.get(Reward, name, with_for_update=True)
            if row is None:
                row = Reward(name=name, created_at=time_of(session), **stored)
                session.add(row)
                return row, None
            changed = [field for field, value in values.items() if self._known(row, field) != value]
            for field, value in stored.items():
                setattr(row, field, value)
        return row, changed

    def _known(self, row: Reward, field: str) -> Any:
        """A field as it was given; a key that nothing here opens is no key that was given."""
        try:
            return self._vault.open(row.key) if field == "key" and row.key else getattr(row, field)
        except ConfigurationError:
            return None

    def endpoint(self, name: str) -> Endpoint:
        """A registered reward's endpoint.

        Raises NotFound, InvalidInput where another version wrote what this one cannot ask, and ConfigurationError when
        its key does not open.
        """
        row = self.reward(name)
        key = self._vault.open(row.key) if row.key else None
        values = {"url": row.url, "kind": row.kind, "options": row.options, "key": key, "tls": row.tls}
        return Endpoint.described(values, field=f"reward {name}")

    def reward(self, name: str) -> Reward:
        with self.database.reading() as session:
            return found(session.get(Reward, name), name, "reward")

    def resolve(self, spec: RewardSpec, hosts: Collection[str], *, field: str) -> Endpoint:
        """The endpoint that a job's reward means now.

        Raises NotFound when none is registered by its name, InvalidInput when it is not one that may be asked.
        """
        endpoint = spec.inline() or self.endpoint(spec.name)
        return endpoint.model_copy(update={"url": check_reward_url(endpoint.url, hosts, field=field)})

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
