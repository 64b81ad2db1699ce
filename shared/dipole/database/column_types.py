"""Types of columns that refuse, in words and on every database alike, what one of them cannot hold.

PostgreSQL has no place for NUL in a text, for more characters than a column has, or for a number of more bits; SQLite
takes the first two and not the last. A value is checked where it is bound, so in what is looked for too.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import JSON, Dialect
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.types import TypeDecorator

from dipole.errors import InvalidInput

NAMING_CONVENTION: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
NullableJson: Final = JSON(none_as_null=True)


class UnstorableValue(InvalidInput, DontWrapMixin):
    """A value that a column cannot hold; SQLAlchemy raises it as it is."""


class _CheckedText(TypeDecorator[str]):
    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if "\x00" in value:
            raise UnstorableValue("a text holds a NUL character (\\0), which cannot be stored: leave it out")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnstorableValue("a text holds half a surrogate pair, which is no character: leave it out") from None
        limit = getattr(self.impl_instance, "length", None)
        if limit is not None and len(value) > limit:
            raise UnstorableValue(f"a text of {len(value)} characters is too long: {limit} at most can be stored")
        return value


class String(_CheckedText):
    impl = sa.String
    cache_ok = True


class Text(_CheckedText):
    impl = sa.Text
    cache_ok = True


class _CheckedInteger(TypeDecorator[int]):
    impl = sa.Integer
    cache_ok = True
    bits = 32

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, int) and not -(2 ** (self.bits - 1)) <= value < 2 ** (self.bits - 1):
            raise UnstorableValue(f"a number does not fit into {self.bits} bits: give one nearer to 0")
        return value


class Integer(_CheckedInteger):
    impl = sa.Integer
    cache_ok = True


class BigInteger(_CheckedInteger):
    impl = sa.BigInteger
    cache_ok = True
    bits = 64


class SerialInteger(_CheckedInteger):
    """An automatic key. SQLite autoincrements only a plain INTEGER, which has 64 bits there."""

    impl = sa.BigInteger
    cache_ok = True
    bits = 64

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(sa.Integer() if dialect.name == "sqlite" else sa.BigInteger())
