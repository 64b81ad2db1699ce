"""Registered reward endpoints. A reward's URL must be on an allowed host, whoever names it.

Its key is stored, encrypted where a vault has a key for it, to be sent to it and never shown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from dipole.client.endpoint import Endpoint, check_reward_url, parse_options
from dipole.database.queries import database_time, require
from dipole.errors import ConfigurationError, Conflict
from dipole.vault import Vault
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import ACTIVE_STATES, JobRow, RewardRow
from dipole_trainer.spec import RewardSpec


class RewardRegistry:
    """Reward endpoints by name, over one Database. `vault` seals endpoints' keys; absent: the environment's."""

    def __init__(self, database: Database, vault: Vault | None = None) -> None:
        self.database = database
        self._vault = vault or Vault.from_environment()

    def put_reward(self, name: str, endpoint: Endpoint, *, description: str = "") -> tuple[RewardRow, list[str] | None]:
        """Register an endpoint, or point a registered name elsewhere; running jobs ask the new one when they resume.

        The row, and the fields that are other than before; None when it is new.
        """
        options = parse_options(endpoint.kind, endpoint.options).model_dump(mode="json", exclude_unset=True)
        values = {**endpoint.to_record(), "options": options, "description": description}
        stored = {**values, "key": self._vault.seal(values["key"]) if values["key"] else None}
        try:
            return self._put_row(name, values, stored)
        except IntegrityError:
            return self._put_row(name, values, stored)  # somebody registered the name at the same moment

    def _put_row(self, name: str, values: dict[str, Any], stored: dict[str, Any]) -> tuple[RewardRow, list[str] | None]:
        with self.database.writing() as session:
            row = session.get(RewardRow, name, with_for_update=True)
            if row is None:
                row = RewardRow(name=name, created_at=database_time(session), **stored)
                session.add(row)
                return row, None
            changed = [field for field, value in values.items() if self._stored_value(row, field) != value]
            for field, value in stored.items():
                setattr(row, field, value)
        return row, changed

    def _stored_value(self, row: RewardRow, field: str) -> Any:
        """A field as it was given; None for a key that cannot be decrypted, so that it counts as changed."""
        try:
            return self._vault.open(row.key) if field == "key" and row.key else getattr(row, field)
        except ConfigurationError:
            return None

    def get_endpoint(self, name: str) -> Endpoint:
        """A registered reward's endpoint.

        Raises NotFound, InvalidInput where another version wrote what this one cannot ask, and ConfigurationError when
        its key does not open.
        """
        row = self.get_reward(name)
        key = self._vault.open(row.key) if row.key else None
        values = {"url": row.url, "kind": row.kind, "options": row.options, "key": key, "tls": row.tls}
        return Endpoint.from_values(values, field=f"reward {name}")

    def get_reward(self, name: str) -> RewardRow:
        with self.database.reading() as session:
            return require(session.get(RewardRow, name), name, "reward")

    def resolve_endpoint(self, spec: RewardSpec, hosts: Collection[str], *, field: str) -> Endpoint:
        """The endpoint that a job's reward means now.

        Raises NotFound when none is registered by its name, InvalidInput when it is not one that may be asked.
        """
        endpoint = spec.inline_endpoint() or self.get_endpoint(spec.name)
        return endpoint.model_copy(update={"url": check_reward_url(endpoint.url, hosts, field=field)})

    def list_rewards(self) -> Sequence[RewardRow]:
        with self.database.reading() as session:
            return session.scalars(select(RewardRow).order_by(RewardRow.name)).all()

    def delete_reward(self, name: str) -> None:
        with self.database.writing() as session:
            require(session.get(RewardRow, name, with_for_update=True), name, "reward")
            active = select(JobRow).where(JobRow.state.in_(ACTIVE_STATES))
            for job in session.scalars(active):
                if any(used.get("name") == name and not used.get("url") for used in job.summary.get("rewards", ())):
                    raise Conflict(f"reward {name} is used by job {job.id}, which is {job.state}: cancel it first")
            session.execute(delete(RewardRow).where(RewardRow.name == name))
