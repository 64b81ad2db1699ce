"""Endpoints' keys where they lie, in database and Redis: encrypted with DIPOLE_SECRETS_KEY where it is set, plain text
where it is not.

    vault = Vault.from_environment()
    vault.open(vault.seal("the key")) == "the key"

The setting holds Fernet keys, separated by commas: the first seals, any of them opens, which is how they are rotated.
What was stored before it was set still opens.
"""

from __future__ import annotations

from dipole.errors import ConfigurationError, how_to_install
from dipole.settings import SecretsSettings, load_settings

SEALED_PREFIX = "fernet:"


class Vault:
    """Seals and opens short texts. Raises ConfigurationError for keys that are none, or not installed to be used."""

    def __init__(self, keys: str | None) -> None:
        self._fernet = None
        if keys is None:
            return
        try:
            from cryptography.fernet import Fernet, MultiFernet
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"DIPOLE_SECRETS_KEY is set, and cryptography is not installed: {how_to_install('api')}"
            ) from error
        try:
            self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
        except ValueError:
            raise ConfigurationError(
                "DIPOLE_SECRETS_KEY must be Fernet keys, separated by commas: make one with "
                "cryptography.fernet.Fernet.generate_key()"
            ) from None

    @classmethod
    def from_environment(cls) -> Vault:
        key = load_settings(SecretsSettings).secrets_key
        return cls(key.get_secret_value() if key else None)

    def seal(self, text: str) -> str:
        """What is stored for it."""
        return text if self._fernet is None else SEALED_PREFIX + self._fernet.encrypt(text.encode()).decode()

    def open(self, stored: str) -> str:
        """The text again. Raises ConfigurationError when no key here opens it."""
        if not stored.startswith(SEALED_PREFIX):
            return stored
        if self._fernet is None:
            raise ConfigurationError("a stored key is encrypted: set DIPOLE_SECRETS_KEY to what it was encrypted with")
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(stored.removeprefix(SEALED_PREFIX)).decode()
        except InvalidToken:
            raise ConfigurationError(
                "a stored key does not open with DIPOLE_SECRETS_KEY: add its own, or register it again"
            ) from None
